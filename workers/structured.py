"""Structured output: what an answer must be by ``response_format``, checked whatever the provider promises.

An answer that does not match goes back to the LLM once, with what is wrong with it, within the same attempt and on
the same meter; if the second does not match either, the attempt fails with ``provider_rejected``.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

import orjson

from models.errors import FailureCode
from workers.checking import Checker, Verdict
from workers.providers.base import Generation, GenerationRequest, Meter, Provider, ProviderError

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


async def generate_checked(
    provider: Provider, request: GenerationRequest, meter: Meter, checker: Checker
) -> Generation:
    """Answer a request in the form that it asks for.

    Raises ProviderError: the provider's, or ``provider_rejected`` when the form was not met twice, was cut off at
    ``max_tokens``, or cannot be met by any answer.
    """
    form = Form.of(request.response_format)
    if form is None:
        return _storable(await provider.generate(request, meter))
    meter.on_text = None  # what is checked and perhaps corrected is given out whole
    if form.schema is not None:
        _require_usable(await checker.check(form.schema))
    generation = _bare(await provider.generate(request, meter))
    problems = await _problems(checker, form, generation.text)
    if problems and generation.finish_reason != "length":
        meter.begin_another_call()
        generation = _bare(await provider.generate(repair_request(request, generation, problems), meter))
        problems = await _problems(checker, form, generation.text)
    if problems:
        cut = generation.finish_reason == "length"
        what = "the answer was cut off at max_tokens" if cut else "the answer does not match its response_format"
        raise _rejected(what, problems)
    return _storable(generation)


async def _problems(checker: Checker, form: Form, text: str) -> list[str]:
    """What is wrong with an answer; nothing when it has its form."""
    try:
        answer = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return [f"it is not JSON: {error}"]
    if form.object_only and not isinstance(answer, dict):
        return ["it is not a JSON object"]
    if form.schema is None:
        return []
    verdict = await checker.check(form.schema, text)
    _require_usable(verdict)
    return verdict.problems


def _require_usable(verdict: Verdict) -> None:
    if not verdict.usable:
        raise _rejected("the JSON Schema cannot be used", verdict.problems)


def repair_request(request: GenerationRequest, generation: Generation, problems: list[str]) -> GenerationRequest:
    """The request that shows an LLM its answer and what is wrong with it."""
    said = [{"role": "assistant", "content": generation.text}] if generation.text.strip() else []
    listed = "\n".join(f"- {problem}" for problem in problems)
    demand = (
        f"That answer does not have the form that was asked for:\n{listed}\nGive the corrected JSON and nothing else."
    )
    return replace(request, messages=[*request.messages, *said, {"role": "user", "content": demand}])


def _bare(generation: Generation) -> Generation:
    """The answer without the code fence that some LLMs put around JSON."""
    fenced = _FENCED.fullmatch(generation.text)
    return replace(generation, text=fenced[1]) if fenced else generation


def _storable(generation: Generation) -> Generation:
    """The answer without NUL characters, which Postgres takes in no text."""
    return replace(generation, text=generation.text.replace("\0", "")) if "\0" in generation.text else generation


def _rejected(what: str, problems: list[str]) -> ProviderError:
    return ProviderError.of(FailureCode.PROVIDER_REJECTED, f"{what}: {'; '.join(problems)}"[:1000])
