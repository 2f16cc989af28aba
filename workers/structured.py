"""Structured output: what an answer must be by ``response_format``, checked whatever the provider promises.

An answer that does not match goes back to the LLM once, with what is wrong with it, within the same attempt and on
the same meter; if the second does not match either, the attempt fails with ``provider_rejected``. The checks stand
outside the calls: neither a call's time nor what it says of the LLM's health has to do with them.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import orjson

from models.errors import FailureCode
from models.tokens import REPAIR_OVERHEAD, most_tokens
from workers.checking import Checker, CheckerAway, Verdict
from workers.providers.base import Generation, GenerationRequest, Meter, ProviderError

_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Form:
    """The form of an answer: any JSON object, or any JSON value that follows a schema."""

    schema: Any = None  # Any: a JSON Schema of the caller's
    object_only: bool = False

    @classmethod
    def of(cls, response_format: dict[str, Any] | None) -> "Form | None":
        """The form that a request asks for; None for text."""
        match (response_format or {}).get("type", "text"):
            case "json_object":
                return cls(object_only=True)
            case "json_schema":
                return cls(schema=((response_format or {}).get("json_schema") or {}).get("schema"))
        return None


Call = Callable[[GenerationRequest], Awaitable[Generation]]
"""One call of an LLM; raises ProviderError."""


async def generate_checked(call: Call, request: GenerationRequest, meter: Meter, checker: Checker) -> Generation:
    """Answer a request in the form that it asks for.

    Raises ProviderError: the call's, or ``provider_rejected`` when the form was not met twice, was cut off at
    ``max_tokens``, or cannot be met by any answer.
    """
    form = Form.of(request.response_format)
    if form is None:
        return _storable(await call(request))
    meter.on_text = None  # what is checked and perhaps corrected is given out whole
    if form.schema is not None:
        await _check(checker, request.tenant, form.schema)
    generation = _bare(await call(request))
    problems = await _problems(checker, request.tenant, form, generation.text)
    if problems and generation.finish_reason != "length":
        meter.begin_another_call()
        generation = _bare(await call(repair_request(request, generation, problems)))
        problems = await _problems(checker, request.tenant, form, generation.text)
    if problems:
        cut = generation.finish_reason == "length"
        what = "the answer was cut off at max_tokens" if cut else "the answer does not match its response_format"
        raise _rejected(what, problems)
    return _storable(generation)


async def _problems(checker: Checker, tenant: str, form: Form, text: str) -> list[str]:
    """What is wrong with an answer; nothing when it has its form."""
    try:
        answer = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return [f"it is not JSON: {error}"]
    if form.object_only and not isinstance(answer, dict):
        return ["it is not a JSON object"]
    if form.schema is None:
        return []
    return (await _check(checker, tenant, form.schema, text)).problems


async def _check(checker: Checker, tenant: str, schema: Any, text: str | None = None) -> Verdict:  # Any: see Form
    """The verdict of a schema that can be used; raises ProviderError."""
    try:
        verdict = await checker.check(tenant, schema, text)
    except CheckerAway as error:
        message = "no answer can be checked here now"
        raise ProviderError.of(FailureCode.OVERLOADED, message, detail=str(error), here=True) from None
    if not verdict.usable:
        raise _rejected("the JSON Schema cannot be used", verdict.problems)
    return verdict


def repair_request(request: GenerationRequest, generation: Generation, problems: list[str]) -> GenerationRequest:
    """The request that shows an LLM its answer and what is wrong with it."""
    said = [{"role": "assistant", "content": generation.text}] if generation.text.strip() else []
    listed = "\n".join(f"- {problem}" for problem in problems)
    demand = (
        f"That answer does not have the form that was asked for:\n{listed}\nGive the corrected JSON and nothing else."
    )
    # The answer is in the prompt: its bytes may be many, its tokens are max_tokens at most, as was reserved.
    most = most_tokens(message["content"] for message in request.messages) + request.max_tokens + REPAIR_OVERHEAD
    messages = [*request.messages, *said, {"role": "user", "content": demand}]
    return replace(request, messages=messages, most_input_tokens=most)


def _bare(generation: Generation) -> Generation:
    """The answer without the code fence that some LLMs put around JSON."""
    fenced = _FENCED.fullmatch(generation.text)
    return replace(generation, text=fenced[1]) if fenced else generation


def _storable(generation: Generation) -> Generation:
    """The answer without NUL characters, which Postgres takes in no text."""
    return replace(generation, text=generation.text.replace("\0", "")) if "\0" in generation.text else generation


def _rejected(what: str, problems: list[str]) -> ProviderError:
    return ProviderError.of(FailureCode.PROVIDER_REJECTED, f"{what}: {'; '.join(problems)}"[:1000])
