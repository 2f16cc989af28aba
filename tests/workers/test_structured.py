"""Structured output: checked whatever the provider promises, repaired once, refused clearly."""

import asyncio
import time
from typing import Any

import pytest

from models.pricing import Usage
from models.tokens import REPAIR_OVERHEAD, most_tokens
from workers import checking
from workers.checking import CHECKERS, FORGET_S, Checker, Verdict, _Refused
from workers.children import Cause, ChildFailed
from workers.providers.base import Generation, GenerationRequest, Meter, ProviderError
from workers.providers.transcript import most_input_tokens
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


async def checked(provider: Scripted, request: GenerationRequest, meter: Meter, checker: Checker) -> Generation:
    return await generate_checked(lambda asked: provider.generate(asked, meter), request, meter, checker)


def answer(provider: Scripted, response_format: dict[str, Any] | None, meter: Meter | None = None) -> Generation:
    """What comes of one request."""

    async def main() -> Generation:
        checker = Checker()
        request = GenerationRequest([{"role": "user", "content": "how old?"}], 9, response_format=response_format)
        try:
            return await checked(provider, request, meter or Meter(), checker)
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


def hostile(number: int = 0) -> dict[str, Any]:
    """A schema of a few lines whose check takes longer than anybody waits; one of many such."""
    doubling = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
    return {"title": str(number), "$defs": {**doubling, "d40": {"type": "integer"}}, "$ref": "#/$defs/d0"}


def test_a_schema_that_asks_for_endless_work_is_stopped_and_the_next_check_works() -> None:
    async def main() -> None:
        checker, ticks = Checker(), 0

        async def count() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        counting = asyncio.create_task(count())
        request = GenerationRequest([{"role": "user", "content": "x"}], 9, response_format=form(hostile()))
        with pytest.raises(ProviderError, match="takes more than"):
            await checked(Scripted('"x"'), request, Meter(), checker)
        assert ticks > 20  # the event loop, and with it every other job, went on
        counting.cancel()
        fine = GenerationRequest([{"role": "user", "content": "x"}], 9, response_format=form(OBJECT))
        assert (await checked(Scripted('{"age": 1}'), fine, Meter(), checker)).text == '{"age": 1}'
        await checker.close()

    asyncio.run(main())


def test_twenty_hostile_schemas_of_one_tenant_delay_anothers_check_by_one_limit() -> None:
    async def main() -> None:
        checker, ended, first = Checker(), 0, asyncio.Event()

        async def attack(number: int) -> None:
            nonlocal ended
            assert not (await checker.check("a", hostile(number), '"x"')).usable
            ended += 1
            first.set()

        attacks = [asyncio.create_task(attack(number)) for number in range(20)]
        await first.wait()
        before = ended
        assert await checker.check("b", OBJECT, '{"age": 7}') == Verdict(True, [])
        assert ended - before <= CHECKERS  # at most those that were being checked
        assert ended < len(attacks)
        for task in attacks:
            task.cancel()
        await checker.close()

    asyncio.run(main())


class Lost:
    """Children that all fail."""

    def __init__(self, cause: Cause) -> None:
        self.asked: list[object] = []
        self._cause = cause

    async def ask(self, tenant: object, _question: bytes, *, timeout_s: float) -> bytes:
        self.asked.append(tenant)
        raise ChildFailed(self._cause)

    async def close(self) -> None:
        """Nothing to end."""


def test_a_schema_that_could_not_be_checked_is_refused_to_its_tenant_without_another_look() -> None:
    async def main() -> list[object]:
        checker, now = Checker(), 0.0
        checker._children = lost = Lost(Cause.TIME)  # type: ignore[assignment]  # a stand-in
        checker._refused = _Refused(lambda: now)
        for tenant in ("a", "a", "b", "a"):
            assert not (await checker.check(tenant, OBJECT, "{}")).usable
        now = FORGET_S
        await checker.check("a", OBJECT, "{}")
        return lost.asked

    assert asyncio.run(main()) == ["a", "b", "a"]


def test_what_is_remembered_of_schemas_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "MOST_REMEMBERED", 10)
    refused = _Refused(time.monotonic)
    for number in range(100):
        refused.add(number)
    assert [number for number in range(100) if number in refused] == list(range(90, 100))


def test_a_checker_that_cannot_start_says_nothing_of_the_schema() -> None:
    async def main() -> None:
        checker = Checker()
        checker._children = Lost(Cause.START)  # type: ignore[assignment]  # a stand-in
        request = GenerationRequest([{"role": "user", "content": "x"}], 9, response_format=form(OBJECT))
        with pytest.raises(ProviderError) as caught:
            await checked(Scripted(), request, Meter(), checker)
        assert caught.value.failure.retryable
        assert caught.value.here

    asyncio.run(main())


@pytest.mark.parametrize("schema", [{"maximum": 10**30}, {"description": "\ud800"}])
def test_a_schema_that_json_cannot_carry_is_refused(schema: dict[str, Any]) -> None:
    assert "JSON Schema cannot be used" in refusal(Scripted(), form(schema))


def test_a_cancelled_check_leaves_nothing_of_its_answer_to_the_next() -> None:
    async def main() -> None:
        checker = Checker()
        asking = asyncio.create_task(checker.check("a", {"type": "nonsense"}))
        await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait({asking})
        assert asking.cancelled()
        assert (await checker.check("a", OBJECT)).usable
        await checker.close()

    asyncio.run(main())


def test_a_correction_is_estimated_as_it_was_reserved() -> None:
    """The first answer is in its prompt, with as many tokens as it had, however many bytes those are."""
    provider = Scripted("x" * 5000, '{"age": 7}')
    answer(provider, form(OBJECT))
    prompt = most_tokens(["how old?"])
    assert most_input_tokens(provider.requests[0]) == prompt
    assert most_input_tokens(provider.requests[1]) <= prompt + 9 + REPAIR_OVERHEAD


def test_an_answer_never_has_a_character_that_postgres_refuses() -> None:
    assert answer(Scripted("a\0b"), None).text == "ab"
