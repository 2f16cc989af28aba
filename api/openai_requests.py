"""From the bodies that OpenAI's clients send to what Headrace submits."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from api.auth import Caller
from api.bodies import JsonObject
from api.errors import validation_failed
from api.fields.chat import TABLES, Surface
from api.fields.others import EMBEDDING_TABLE, TOKEN_IDS
from api.fields.reading import read_request, refused, settle
from api.fields.table import Table
from api.schemas.openai import EmbeddingRequest
from api.schemas.requests import DEFAULT_EXPIRES_IN_S, JobRequest
from models.catalog import Catalog
from models.errors import ContextLengthExceeded, FieldProblem
from models.ids import new_id
from models.job import PRIORITIES
from models.pricing import worst_case
from models.routing import Router
from models.tokens import fewest_tokens, most_tokens

MAX_TEXTS = 2048
_OF_STREAM = ("stream", "stream_options")


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
    request = read_request({name: body[name] for name in body if name not in _OF_STREAM}, Surface.CHAT)
    if body.get("stream") is None or body["stream"] is False:
        return Chat(request, stream=False, include_usage=False)
    asked, _ = settle({name: body[name] for name in _OF_STREAM if name in body}, TABLES[Surface.CHAT])
    try:
        stream = _Stream.model_validate(asked)
    except ValidationError as error:
        raise validation_failed(error.errors(include_url=False, include_input=False)) from None
    return Chat(request, stream.stream, stream.stream_options.include_usage)


def embedding_request(body: JsonObject, table: Table = EMBEDDING_TABLE) -> EmbeddingRequest:
    """The vectors that a body asks for; raises ValidationFailed."""
    given, problems = settle(body, table)
    if "input" in given:
        problems += _problems_of_input(given["input"])
    if problems:
        raise refused(problems)
    try:
        return EmbeddingRequest.model_validate(given)
    except ValidationError as error:
        raise validation_failed(error.errors(include_url=False, include_input=False)) from None


def _problems_of_input(given: object) -> Iterator[FieldProblem]:
    """What is wrong with the texts, the first such thing."""
    texts = given if isinstance(given, list) else [given]
    if not 1 <= len(texts) <= MAX_TEXTS:
        yield FieldProblem("input", f"Send 1 to {MAX_TEXTS} texts, not {len(texts)}.")
        return
    for number, text in enumerate(texts):
        if isinstance(text, str) and text:
            continue
        if isinstance(text, str):
            message = "The text is empty; leave it out."
        elif isinstance(given, list) and isinstance(text, int | list) and not isinstance(text, bool):
            message = TOKEN_IDS
        else:
            message = "Send a text, or a list of texts."
        yield FieldProblem(f"input.{number}" if isinstance(given, list) and message != TOKEN_IDS else "input", message)
        return


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
