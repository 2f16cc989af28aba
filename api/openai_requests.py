"""From the bodies that OpenAI's clients send to what Headrace submits."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from api.auth import Caller
from api.bodies import JsonObject
from api.errors import validation_failed
from api.schemas.openai import EmbeddingRequest
from api.schemas.requests import DEFAULT_EXPIRES_IN_S, JobRequest
from api.submission import parse_request
from models.catalog import Catalog
from models.errors import ContextLengthExceeded, FieldProblem, ValidationFailed
from models.ids import new_id
from models.job import PRIORITIES
from models.pricing import worst_case
from models.routing import Router
from models.tokens import fewest_tokens, most_tokens

MAX_TEXTS = 2048
MAX_METADATA = 16
_DEFAULTS: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "parallel_tool_calls": (True,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "modalities": (["text"],),
    "logit_bias": ({},),
}
"""Fields of OpenAI's that are accepted with the values that change nothing."""

_UNSUPPORTED = frozenset(
    {
        *_DEFAULTS,
        *("audio", "functions", "function_call", "prediction", "reasoning_effort", "top_logprobs", "verbosity"),
        *("web_search_options", "prompt_cache_key", "safety_identifier"),
    }
)
_FOREIGN = frozenset({"prompt", "callback_url", "conversation_id"})
"""Fields of a job that a chat completion does not have."""


class StreamOptions(BaseModel):
    """What a stream has besides the answer."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    include_usage: bool = False


class _Stream(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat completion that was asked for: the job that makes it, and how it is answered."""

    request: JobRequest
    stream: bool
    include_usage: bool


def parse_chat(body: JsonObject) -> Chat:
    """The chat completion that a body asks for; raises ValidationFailed."""
    given = {name: value for name, value in body.items() if value is not None}
    how = {name: given.pop(name) for name in ("stream", "stream_options") if name in given}
    try:
        stream = _Stream.model_validate(how)
    except ValidationError as error:
        raise validation_failed(error.errors(include_url=False, include_input=False)) from None
    return Chat(chat_request(given), stream.stream, stream.stream_options.include_usage)


def chat_request(body: JsonObject) -> JobRequest:
    """The job that makes a chat completion; raises ValidationFailed."""
    given = {name: value for name, value in body.items() if value is not None}
    problems = [problem for name in list(given) if (problem := _settle(given, name)) is not None]
    if "max_completion_tokens" in given:
        most = given.pop("max_completion_tokens")
        if given.setdefault("max_tokens", most) != most:
            problems.append(FieldProblem("max_completion_tokens", "It is not the same as max_tokens; send one."))
    if "messages" not in given:
        problems.append(FieldProblem("messages", "This field is required."))
    if problems:
        raise refused(problems)
    return parse_request(given)


def embedding_request(body: JsonObject) -> EmbeddingRequest:
    """The vectors that a body asks for; raises ValidationFailed."""
    try:
        request = EmbeddingRequest.model_validate({name: value for name, value in body.items() if value is not None})
    except ValidationError as error:
        raise validation_failed(error.errors(include_url=False, include_input=False)[:1]) from None
    texts = texts_of(request)
    if not 1 <= len(texts) <= MAX_TEXTS or not all(texts):
        raise refused([FieldProblem("input", f"Send 1 to {MAX_TEXTS} texts, none of them empty.")])
    return request


def texts_of(request: EmbeddingRequest) -> list[str]:
    """The texts of a request for vectors."""
    return [request.input] if isinstance(request.input, str) else request.input


def plan_embedding(
    request: EmbeddingRequest,
    caller: Caller,
    catalog: Catalog,
    idempotency_key: str | None,
    router: Router,
    *,
    request_hash: str | None = None,
    expires_in: float = DEFAULT_EXPIRES_IN_S,
) -> dict[str, Any]:  # Any: columns of several types
    """The row to insert for a request for vectors; raises ModelNotFound or ContextLengthExceeded."""
    route = router.embedder(request.model)
    llm = catalog.llms[route.chosen]
    texts = texts_of(request)
    longest = max(fewest_tokens([text]) for text in texts)
    if longest > llm.context_window:
        raise ContextLengthExceeded(
            f"A text has at least {longest} tokens; the context window of {route.chosen} has {llm.context_window}.",
            param="input",
        )
    now = datetime.now(UTC)
    prices = llm.tariff.between(now, now + timedelta(seconds=expires_in))
    wanted: JsonObject = {"input": texts, "encoding_format": request.encoding_format}
    if request.dimensions is not None:
        wanted["dimensions"] = request.dimensions
    return {
        "id": new_id(),
        "tenant_id": caller.tenant_id,
        "api_key_id": caller.api_key_id,
        "kind": "embedding",
        "priority": PRIORITIES["normal"],
        "model": request.model,
        "route": route.llms,
        "routing": route.as_wire(),
        "tier": llm.tier,
        "queue": catalog.queue_of(route.chosen),
        "request": wanted,
        "max_cost_usd": None,
        "reserved_usd": worst_case(most_tokens(texts), 0, prices),
        "end_user": request.user,
        "team": None,
        "labels": {},
        "idempotency_key": idempotency_key,
        "request_hash": request_hash,
        "expires_in": expires_in,
    }


def refused(problems: list[FieldProblem]) -> ValidationFailed:
    """One refusal for several problems."""
    detail = "; ".join(f"{problem.field}: {problem.message}" for problem in problems[:3])
    return ValidationFailed(detail, param=problems[0].field, problems=problems)


def _settle(given: JsonObject, name: str) -> FieldProblem | None:
    """Take away what changes nothing; what is wrong with a field that Headrace does not have."""
    if name in _FOREIGN:
        return FieldProblem(name, "There is no such field.")
    if name not in _UNSUPPORTED:
        return None
    value = given.pop(name)
    if any(value == neutral and type(value) is type(neutral) for neutral in _DEFAULTS.get(name, ())):
        return None
    return FieldProblem(name, "This is not supported.")
