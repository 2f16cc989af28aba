"""An attempt's stages: what each takes and says of the LLM, and what becomes of the job."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from models.catalog import Catalog
from models.errors import FailureCode, JobFailure
from models.lifecycle import AttemptOutcome, JobStatus
from models.pricing import Usage
from workers.breaker import Health, Refused, health_at_limit
from workers.checking import Verdict
from workers.execution import Attempt, Claim, Report
from workers.gate import Busy
from workers.providers.base import Generation, GenerationRequest, Meter, ProviderError

LLM = "few"
REQUEST: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
FORM = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}


def catalog(timeout_s: float = 60.0) -> Catalog:
    prices = {"input_price": 1, "output_price": 1}
    llm = {"tier": "t", "provider": "mock", "context_window": 100, "timeout_s": timeout_s, "retries": 1, **prices}
    return Catalog.model_validate({"tiers": {"t": {"queue": "t", "pool": "cpu"}}, "llms": {LLM: llm}})


class Gate:
    """A gate that gives these answers in turn and then is open, and remembers what it was told."""

    def __init__(self, *answers: Refused | Busy) -> None:
        self.told: list[Health | None] = []
        self.inside = 0
        self.breakers = SimpleNamespace(is_open=lambda _llm: False, wait_s=lambda _llm: 0.0)
        self.answers: list[Refused | Busy | None] = list(answers)

    @asynccontextmanager
    async def enter(self, _llm: str) -> AsyncIterator[object]:
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            yield answer
            return
        entry = SimpleNamespace(health=None)
        self.inside += 1
        try:
            yield entry
        finally:
            self.inside -= 1
            self.told.append(entry.health)


class Checking:
    """A checker that takes its time; it finds these problems, answer by answer, and notes who is inside the gate."""

    def __init__(self, gate: Gate, seconds: float = 0.0, problems: tuple[list[str], ...] = ()) -> None:
        self.inside: list[int] = []
        self.tenants: set[object] = set()
        self._gate, self._seconds, self._problems = gate, seconds, list(problems)

    async def check(self, tenant: object, _schema: object, text: str | None = None) -> Verdict:
        self.inside.append(self._gate.inside)
        self.tenants.add(tenant)
        await asyncio.sleep(self._seconds)
        return Verdict(True, self._problems.pop(0) if text is not None and self._problems else [])


Answer = Callable[[Meter], Awaitable[Generation]]


class Provider:
    """The provider of every LLM, which answers as a function does."""

    def __init__(self, answer: Answer, checker: Checking | None = None) -> None:
        self.checker = checker
        self.calls = 0
        self._answer = answer

    def get(self, _name: str) -> "Provider":
        return self

    async def generate(self, _request: GenerationRequest, meter: Meter) -> Generation:
        self.calls += 1
        return await self._answer(meter)


def run(provider: Provider, gate: Gate, *, timeout_s: float = 60.0, expires_in_s: float = 60.0, **more: Any) -> Report:
    claim = Claim(UUID(int=1), UUID(int=2), UUID(int=3), (LLM,), 0, 0, REQUEST | more, expires_in_s)
    stand_ins: Any = (provider, gate)
    return asyncio.run(Attempt(claim, catalog(timeout_s), *stand_ins).run())


async def answers_at_once(meter: Meter) -> Generation:
    meter.input_tokens, meter.output_tokens = 3, 2
    meter.mark_first_token()
    return Generation("{}", "stop")


def fails(error: ProviderError) -> Answer:
    async def answer(_meter: Meter) -> Generation:
        raise error

    return answer


@pytest.mark.parametrize(("here", "told"), [(False, Health.UNWELL), (True, Health.UNKNOWN)])
def test_what_this_process_lacks_is_not_held_against_the_llm(here: bool, told: Health) -> None:
    gate = Gate()
    error = ProviderError(JobFailure(FailureCode.OVERLOADED, "no memory", 5.0), here=here)
    report = run(Provider(fails(error)), gate)
    assert report.ending.failure is not None
    assert report.ending.failure.code is FailureCode.OVERLOADED
    assert gate.told == [told]


def test_a_check_that_waits_is_neither_the_calls_time_nor_the_llms_illness_and_holds_no_permit() -> None:
    gate = Gate()
    checker = Checking(gate, seconds=0.3)
    report = run(Provider(answers_at_once, checker), gate, timeout_s=0.2, response_format=FORM)
    assert report.ending.outcome is AttemptOutcome.COMPLETED
    assert gate.told == [Health.WELL]
    assert checker.inside == [0, 0]  # before the call and after it
    assert report.duration_ms < 300
    assert checker.tenants == {UUID(int=2).hex}


def test_a_job_expires_while_its_answer_is_checked_and_what_it_used_is_booked() -> None:
    gate = Gate()
    provider = Provider(answers_at_once, Checking(gate, seconds=0.2))
    report = run(provider, gate, expires_in_s=0.3, response_format=FORM)
    assert report.ending.status is JobStatus.EXPIRED
    assert report.usage == Usage(3, 2)
    assert gate.told == [Health.WELL]


def test_a_correction_is_a_call_of_its_own_that_waits_for_a_permit() -> None:
    gate = Gate()
    checker = Checking(gate, problems=(["wrong"], []))

    async def answer(meter: Meter) -> Generation:
        gate.answers += [Busy(), Busy()] if provider.calls == 1 else []
        return await answers_at_once(meter)

    provider = Provider(answer, checker)
    report = run(provider, gate, response_format=FORM)
    assert report.ending.outcome is AttemptOutcome.COMPLETED
    assert provider.calls == 2
    assert gate.told == [Health.WELL, Health.WELL]
    assert report.usage == Usage(6, 4)


def test_a_breaker_that_opens_before_a_correction_fails_the_attempt_and_the_first_call_is_booked() -> None:
    gate = Gate()

    async def answer(meter: Meter) -> Generation:
        gate.answers.append(Refused(9.0))
        return await answers_at_once(meter)

    provider = Provider(answer, Checking(gate, problems=(["wrong"],)))
    report = run(provider, gate, response_format=FORM)
    assert report.ending.failure is not None
    assert report.ending.failure.code is FailureCode.CIRCUIT_OPEN
    assert not report.ending.not_made
    assert report.ending.status is JobStatus.QUEUED
    assert report.usage == Usage(3, 2)


@pytest.mark.parametrize("answer", [Refused(9.0), Busy()])
def test_a_job_whose_call_the_gate_lets_not_pass_is_put_off_and_nothing_remains(answer: Refused | Busy) -> None:
    provider, gate = Provider(answers_at_once), Gate(answer)
    report = run(provider, gate)
    assert report.ending.not_made
    assert provider.calls == 0
    assert gate.told == []


async def writes(meter: Meter) -> Generation:
    """Write for longer than anybody waits."""
    while True:
        await asyncio.sleep(0.01)
        meter.mark_first_token()


async def reasons(meter: Meter) -> Generation:
    while True:
        await asyncio.sleep(0.01)
        meter.mark_output()


async def is_silent(_meter: Meter) -> Generation:
    await asyncio.sleep(60)
    raise AssertionError


async def falls_silent(meter: Meter) -> Generation:
    meter.mark_first_token()
    return await is_silent(meter)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (writes, Health.UNKNOWN),
        (reasons, Health.UNKNOWN),
        (is_silent, Health.UNWELL),
        (falls_silent, Health.UNWELL),
    ],
)
def test_at_its_time_limit_only_an_llm_that_was_silent_is_unwell(answer: Answer, told: Health) -> None:
    gate = Gate()
    report = run(Provider(answer), gate, timeout_s=0.4)
    assert report.ending.failure is not None
    assert report.ending.failure.code is FailureCode.TIMEOUT
    assert gate.told == [told]


def test_a_correction_that_is_silent_is_unwell_however_much_the_first_call_wrote() -> None:
    gate = Gate()

    async def answer(meter: Meter) -> Generation:
        return await (answers_at_once if provider.calls == 1 else is_silent)(meter)

    provider = Provider(answer, Checking(gate, problems=(["wrong"],)))
    run(provider, gate, timeout_s=0.3, response_format=FORM)
    assert gate.told == [Health.WELL, Health.UNWELL]


@pytest.mark.parametrize(
    ("silent_s", "limit_s", "told"),
    [(1, 300, Health.UNKNOWN), (10, 300, Health.UNWELL), (1, 2, Health.UNWELL), (0.9, 2, Health.UNKNOWN)],
)
def test_a_silence_is_ten_seconds_or_half_of_a_shorter_limit(silent_s: float, limit_s: float, told: Health) -> None:
    assert health_at_limit(silent_s, limit_s) is told


def test_a_detail_of_an_error_is_in_the_log_with_the_job_and_not_in_the_failure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = ProviderError.of(FailureCode.CONNECTION, "the provider cannot be reached", detail="10.0.0.5:443 refused")
    report = run(Provider(fails(error)), Gate())
    assert report.ending.failure is not None
    assert report.ending.failure.message == "the provider cannot be reached"
    logged = capsys.readouterr().out
    assert "10.0.0.5:443 refused" in logged
    assert UUID(int=1).hex in logged
