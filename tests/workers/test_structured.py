"""Structured output: checked whatever the provider promises, repaired once, refused clearly."""

import asyncio
import time
from typing import Any

import pytest

from models.pricing import Usage
from workers.checking import Checker
from workers.providers.base import Generation, GenerationRequest, Meter, ProviderError
from workers.structured import generate_checked

OBJECT = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
PLAIN = {"type": "json_object"}


def form(schema: Any) -> dict[str, Any]:
    """A ``response_format`` with a schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


class Scripted:
    """A provider that gives these answers in turn, 3 tokens in and 2 out for each."""

    def __init__(self, *texts: str, finish_reason: str = "stop") -> None:
        self.requests: list[GenerationRequest] = []
        self._texts = iter(texts)
        self._finish_reason = finish_reason

    async def generate(self, request: GenerationRequest, meter: Meter) -> Generation:
        self.requests.append(request)
        meter.input_tokens, meter.output_tokens = 3, 2
        return Generation(next(self._texts), self._finish_reason)

    async def close(self) -> None:
        """Nothing to free."""


def answer(provider: Scripted, response_format: dict[str, Any] | None, meter: Meter | None = None) -> Generation:
    """What comes of one request."""

    async def main() -> Generation:
        checker = Checker()
        request = GenerationRequest([{"role": "user", "content": "how old?"}], 9, response_format=response_format)
        try:
            return await generate_checked(provider, request, meter or Meter(), checker)
        finally:
            await checker.close()

    return asyncio.run(main())


def refusal(provider: Scripted, response_format: dict[str, Any]) -> str:
    with pytest.raises(ProviderError) as caught:
        answer(provider, response_format)
    assert caught.value.failure.code == "provider_rejected"
    return caught.value.failure.message


@pytest.mark.parametrize("response_format", [None, {"type": "text"}])
def test_text_is_not_checked(response_format: dict[str, Any] | None) -> None:
    assert answer(Scripted("not JSON"), response_format).text == "not JSON"


@pytest.mark.parametrize(
    ("response_format", "text"),
    [
        (PLAIN, '{"a": 1}'),
        (form(OBJECT), '{"age": 7}'),
        (form({"type": "array"}), "[1]"),
        (form(None), '"anything"'),
        (form({"$defs": {"n": {"type": "integer"}}, "items": {"$ref": "#/$defs/n"}}), "[1, 2]"),
    ],
)
def test_an_answer_that_has_its_form_is_given_as_it_is(response_format: dict[str, Any], text: str) -> None:
    provider = Scripted(text)
    assert answer(provider, response_format) == Generation(text, "stop")
    assert len(provider.requests) == 1


def test_a_code_fence_around_json_is_taken_off() -> None:
    assert answer(Scripted('```json\n{"age": 7}\n```\n'), form(OBJECT)).text == '{"age": 7}'


def test_an_answer_that_does_not_match_is_sent_back_once_and_both_calls_are_paid() -> None:
    provider, meter = Scripted('{"age": "seven"}', '{"age": 7}'), Meter()
    assert answer(provider, form(OBJECT), meter).text == '{"age": 7}'
    assert meter.usage == Usage(6, 4)
    first, second = provider.requests
    assert second.messages[0] == first.messages[0]
    assert second.messages[1] == {"role": "assistant", "content": '{"age": "seven"}'}
    assert '"seven" is not of type "integer"' in second.messages[2]["content"]
    assert second.response_format == first.response_format


@pytest.mark.parametrize(
    ("response_format", "text", "reason"),
    [
        (PLAIN, "seven", "not JSON"),
        (PLAIN, "[7]", "not a JSON object"),
        (form(OBJECT), "{}", '"age" is a required property'),
        (form(OBJECT), '{"age": "x"}', "$.age"),
        (form(OBJECT), "", "not JSON"),
    ],
)
def test_an_answer_that_does_not_match_twice_is_an_error_that_says_why(
    response_format: dict[str, Any], text: str, reason: str
) -> None:
    provider = Scripted(text, text)
    assert reason in refusal(provider, response_format)
    assert len(provider.requests) == 2


def test_an_answer_that_was_cut_off_is_not_asked_for_again() -> None:
    provider = Scripted('{"age"', finish_reason="length")
    assert "cut off at max_tokens" in refusal(provider, form(OBJECT))
    assert len(provider.requests) == 1


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "http://127.0.0.1:9/elsewhere"},
        {"$ref": "file:///etc/hostname"},
        {"$schema": "http://127.0.0.1:9/elsewhere"},
        {"pattern": "(?=a)b"},
        {"pattern": "((a{100}){100}){100}"},
        {"$ref": "#/$defs/missing"},
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_before_money_is_spent(schema: dict[str, Any]) -> None:
    provider = Scripted()
    assert "JSON Schema cannot be used" in refusal(provider, form(schema))
    assert provider.requests == []


def test_a_pattern_that_hangs_others_is_checked_in_time() -> None:
    started = time.monotonic()
    text = '"' + "a" * 5000 + '!"'
    assert "does not match" in refusal(Scripted(text, text), form({"type": "string", "pattern": "^(a+)+$"}))
    assert time.monotonic() - started < 3  # for ever, elsewhere


def test_a_schema_that_asks_for_endless_work_is_stopped_and_the_next_check_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    doubling = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
    hostile = form({"$defs": {**doubling, "d40": {"type": "integer"}}, "$ref": "#/$defs/d0"})
    monkeypatch.setattr("workers.checking.CHECK_TIMEOUT_S", 1.0)

    async def main() -> None:
        checker, ticks = Checker(), 0

        async def count() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        counting = asyncio.create_task(count())
        request = GenerationRequest([{"role": "user", "content": "x"}], 9, response_format=hostile)
        with pytest.raises(ProviderError, match="takes more than"):
            await generate_checked(Scripted('"x"'), request, Meter(), checker)
        assert ticks > 20  # the event loop, and with it every other job, went on
        counting.cancel()
        fine = GenerationRequest([{"role": "user", "content": "x"}], 9, response_format=form(OBJECT))
        assert (await generate_checked(Scripted('{"age": 1}'), fine, Meter(), checker)).text == '{"age": 1}'
        await checker.close()

    asyncio.run(main())


def test_a_cancelled_check_leaves_nothing_of_its_answer_to_the_next() -> None:
    async def main() -> None:
        checker = Checker()
        asking = asyncio.create_task(checker.check({"type": "nonsense"}))
        await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait({asking})
        assert asking.cancelled()
        assert (await checker.check(OBJECT)).usable
        await checker.close()

    asyncio.run(main())


def test_an_answer_never_has_a_character_that_postgres_refuses() -> None:
    assert answer(Scripted("a\0b"), None).text == "ab"
