"""One attempt, told top to bottom: pass the gate, call the LLM, check the answer, price what was used, decide what
follows, report.

The gate and the LLM's time limit belong to each call of the LLM and to nothing else: while an answer is checked no
permit is held, and what the check takes is neither the call's time nor the LLM's illness. The job's own time, until it
expires, covers the whole.

The job was claimed before (:mod:`workers.exchange`), its attempt row is written, and the report moves it on
in one statement, fenced by the attempt's id. Nothing here knows of Postgres or Celery.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from time import monotonic
from typing import Any, TypeVar
from uuid import UUID

import structlog

from models.catalog import LLM, Catalog
from models.errors import PROVIDER_SIDE, FailureCode, JobFailure
from models.lifecycle import AttemptOutcome, JobStatus
from models.pricing import Price, Usage, cost_of
from models.storable import MAX_SMALLINT, storable_count
from workers.adjusting import NORMAL, Adjustment, adjust, adjustments_of
from workers.breaker import Health, Refused, health_at_limit, health_of
from workers.gate import Busy, Entry, Gate
from workers.providers.base import (
    Embedding,
    EmbeddingRequest,
    Generation,
    GenerationRequest,
    Meter,
    ProviderError,
)
from workers.providers.registry import Providers
from workers.retries import Fail, FallBack, Onward, Retry, decide, onward
from workers.structured import generate_checked

log = structlog.get_logger()
T = TypeVar("T")
_FREE = Price.zero()
_BUSY_S = (0.5, 1.5)
"""How long a job is put off that found no permit, in seconds, at random between these."""

_SPREAD_S = 1.0
"""Jobs that wait for one probe come back within this many seconds after it is due."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this process holds, for one attempt."""

    job_id: UUID
    tenant_id: UUID
    attempt_id: UUID
    route: tuple[str, ...]
    route_index: int
    llm_failures: int
    request: dict[str, Any]  # Any: the request as the API checked and stored it
    expires_in_s: float
    budgeted: bool = False
    priority: int = NORMAL

    @property
    def llm(self) -> str:
        return self.route[self.route_index]


class StopReason(StrEnum):
    """Why a running attempt is told to stop."""

    CANCELLED = "cancelled"
    """Its caller cancelled the job."""

    RELEASED = "released"
    """This worker is going down; the job goes back to the queue."""

    LOST = "lost"
    """The job is no longer this worker's."""


UNRECORDED = JobFailure(FailureCode.INTERNAL, "the outcome of this attempt could not be recorded")


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended and where its job goes.

    ``goes_to``: the place of another LLM in the route. ``not_made``: the LLM was not called and the job waits for
    it; nothing remains of the attempt. ``adjusted``: what the job's further attempts are made with instead.
    """

    outcome: AttemptOutcome
    status: JobStatus
    result: dict[str, Any] | None = None  # Any: JSON
    failure: JobFailure | None = None
    retry_in_s: float = 0.0
    goes_to: int | None = None
    not_made: bool = False
    adjusted: Adjustment | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """A finished attempt with all that is settled with it."""

    claim: Claim
    ending: Ending
    usage: Usage
    price: Price
    duration_ms: int
    time_to_first_token_ms: int | None
    adapted: Sequence[str] = ()

    def as_row(self, catalog: Catalog) -> dict[str, object]:
        """The row that ``models.attempt.FINISH`` takes; ``tier`` and ``queue`` are None, and stay what they were, where
        the LLM has left the catalogue."""
        claim, ending = self.claim, self.ending
        index = claim.route_index if ending.goes_to is None else ending.goes_to
        moves = index != claim.route_index
        failed = ending.failure is not None
        llm = catalog.llms.get(claim.route[index])
        first_ms = self.time_to_first_token_ms
        adjusted = ending.adjusted
        counts = failed and not (adjusted and adjusted.max_tokens)
        return self._settled() | {
            "goes_on_budgeted": claim.budgeted and ending.status is JobStatus.QUEUED,
            "outcome": ending.outcome,
            "error": ending.failure.as_wire() if ending.failure else None,
            "time_to_first_token_ms": None if first_ms is None else storable_count(first_ms),
            "status": ending.status,
            "result": ending.result,
            "retry_in_s": ending.retry_in_s,
            "route_index": index,
            "llm_failures": 0 if moves else storable_count(claim.llm_failures + counts, MAX_SMALLINT),
            "tier": llm.tier if llm else None,
            "queue": catalog.tiers[llm.tier].queue if llm else None,
            **({"adapted": list(self.adapted)} if self.adapted else {}),
            **({"adjusted": adjusted.as_stored(), "priority": adjusted.priority} if adjusted else {}),
        }

    def as_minimal_row(self) -> dict[str, object]:
        """The row of a report that Postgres refused: it settles the same usage, ends the job, and has no text but
        ours."""
        return self._settled() | {
            "goes_on_budgeted": False,
            "outcome": AttemptOutcome.FAILED,
            "error": UNRECORDED.as_wire(),
            "status": JobStatus.FAILED,
            "route_index": self.claim.route_index,
            "llm_failures": self.claim.llm_failures,
        }

    def _settled(self) -> dict[str, object]:
        """What an attempt is and used; counts are cut to what Postgres can store, and what they cost with them."""
        claim, usage = self.claim, _storable_usage(self.usage)
        return {
            "attempt_id": claim.attempt_id,
            "job_id": claim.job_id,
            "tenant_id": claim.tenant_id,
            "llm": claim.llm,
            "duration_ms": storable_count(self.duration_ms),
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cached_input_tokens": usage.cached_input_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
            "usage_estimated": usage.estimated,
            "input_price": self.price.input,
            "output_price": self.price.output,
            "cached_input_price": self.price.cached_input,
            "cost_usd": cost_of(usage, self.price),
        }


def _storable_usage(usage: Usage) -> Usage:
    """Usage whose counts Postgres can store."""
    storable = Usage(
        storable_count(usage.input_tokens),
        storable_count(usage.output_tokens),
        storable_count(usage.cached_input_tokens),
        storable_count(usage.reasoning_tokens),
        usage.estimated,
    )
    return usage if storable == usage else storable


class _NotCalled(Exception):
    """The gate let no call pass: the job goes elsewhere or waits."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.status)
        self.ending = ending


class Attempt:
    """A running attempt; :meth:`stop` ends it early, from the same event loop."""

    def __init__(
        self,
        claim: Claim,
        catalog: Catalog,
        providers: Providers,
        gate: Gate,
        on_text: Callable[[str], None] | None = None,
    ) -> None:
        self.claim = claim
        self._catalog = catalog
        self._providers = providers
        self._gate = gate
        self._first_called_at: float | None = None
        self._calling_s = 0.0
        self._meter = Meter(on_text)
        self._stop_reason: StopReason | None = None
        self._call: asyncio.Task[Ending] | None = None

    def stop(self, reason: StopReason) -> None:
        """Stop the call to the provider; without effect on an attempt that is done with it."""
        if self._stop_reason is None:
            self._stop_reason = reason
            if self._call is not None:
                self._call.cancel()

    async def run(self) -> Report:
        """Call, price and decide; whatever happens to the call, there is a report of it.

        The duration in the report is that of the calls of the LLM.
        """
        llm = self._catalog.llms.get(self.claim.llm)
        price = llm.tariff.at(datetime.now(UTC)) if llm else _FREE
        self._call = asyncio.create_task(self._end(llm))
        if self._stop_reason is not None:
            self._call.cancel()
        await asyncio.wait([self._call])
        ending = self._stopped() if self._call.cancelled() else self._call.result()
        called, first = self._first_called_at, self._meter.first_token_at
        return Report(
            self.claim,
            ending,
            self._meter.usage,
            price,
            duration_ms=round(self._calling_s * 1000),
            time_to_first_token_ms=None if first is None or called is None else round((first - called) * 1000),
            adapted=[*adjustments_of(self.claim.request), *self._meter.adapted],
        )

    async def _end(self, llm: LLM | None) -> Ending:
        """What comes of the job within its time."""
        expiry = asyncio.timeout(self.claim.expires_in_s)
        try:
            async with expiry:
                return await self._answer(llm)
        except _NotCalled as not_called:
            return not_called.ending
        except ProviderError as error:
            if error.detail:
                fields = {"job_id": self.claim.job_id.hex, "llm": self.claim.llm, "code": error.failure.code.value}
                log.warning("attempt.provider_failed", **fields, detail=error.detail)
            return self._failed(error.failure, llm)
        except Exception:
            if expiry.expired():
                return EXPIRED
            log.exception("attempt.crashed", job_id=self.claim.job_id.hex, llm=self.claim.llm)
            return self._failed(JobFailure(FailureCode.INTERNAL, "an unexpected error; the worker's log has it"), llm)

    async def _answer(self, llm: LLM | None) -> Ending:
        """The answer to the request, checked where it has a form."""
        provider, meter, name = self._providers.get(self.claim.llm), self._meter, self.claim.llm
        if "input" in self.claim.request:
            texts = parse_embedding(self.claim.request)
            return embedded(await self._call_llm(llm, lambda: provider.embed(texts, meter)), name)

        async def generate(asked: GenerationRequest) -> Generation:
            return await self._call_llm(llm, lambda: provider.generate(asked, meter))

        request = parse_request(self.claim.request, tenant=self.claim.tenant_id.hex)
        return completed(await generate_checked(generate, request, meter, self._providers.checker), name)

    async def _call_llm(self, llm: LLM | None, call: Callable[[], Awaitable[T]]) -> T:
        """Make one call past the gate; raises ProviderError, and _NotCalled when the gate lets no first call pass.

        A later call of the same attempt, whose first is paid, does not give up for want of a permit.
        """
        while True:
            async with self._gate.enter(self.claim.llm) as entry:
                match entry:
                    case Refused(wait_s) if self._first_called_at is None:
                        raise _NotCalled(self._go_round(wait_s))
                    case Refused():
                        raise ProviderError(self._circuit_open)
                    case Busy() if self._first_called_at is None:
                        raise _NotCalled(_put_off(self.claim.route_index, random.uniform(*_BUSY_S)))
                    case Busy():
                        continue
                return await self._within_limit(llm, entry, call)

    async def _within_limit(self, llm: LLM | None, entry: Entry, call: Callable[[], Awaitable[T]]) -> T:
        """Make one call within the LLM's time, and say what it tells of the LLM's health."""
        called_at = monotonic()
        self._first_called_at = self._first_called_at or called_at
        limit = asyncio.timeout(llm.timeout_s if llm else None)
        try:
            async with limit:
                answer = await call()
        except ProviderError as error:
            entry.health = Health.UNKNOWN if error.here else health_of(error.failure.code)
            raise
        except TimeoutError:
            if llm is None or not limit.expired():
                raise
            entry.health = health_at_limit(self._meter.silent_s(called_at), llm.timeout_s)
            raise ProviderError.of(FailureCode.TIMEOUT, f"no answer within {llm.timeout_s:g} s") from None
        finally:
            self._calling_s += monotonic() - called_at
        entry.health = Health.WELL
        return answer

    def _failed(self, failure: JobFailure, llm: LLM | None) -> Ending:
        decision = decide(
            failure,
            failures=self.claim.llm_failures + 1,
            retries=llm.retries if llm else 0,
            onward=self._onward(),
            uniform=random.uniform,
        )
        adjusted = adjust(failure, self.claim.request, self.claim.priority, goes_on=not isinstance(decision, Fail))
        queued = Ending(AttemptOutcome.FAILED, JobStatus.QUEUED, failure=failure, adjusted=adjusted)
        match decision:
            case Retry(delay_s):
                return replace(queued, retry_in_s=delay_s)
            case FallBack(index):
                return replace(queued, goes_to=index)
        if adjusted is not None:
            return queued
        last_resort = self._last_resort(AttemptOutcome.FAILED, failure)
        return last_resort or Ending(AttemptOutcome.FAILED, JobStatus.FAILED, failure=failure)

    def _go_round(self, wait_s: float) -> Ending:
        """What follows an open circuit breaker: the next LLM whose breaker is closed, or a wait for the first
        that will let a probe pass. No retry is used up."""
        failure = self._circuit_open
        ready = self._onward().ready
        if ready is not None:
            return Ending(AttemptOutcome.SNOOZED, JobStatus.QUEUED, failure=failure, goes_to=ready)
        last_resort = self._last_resort(AttemptOutcome.SNOOZED, failure)
        if last_resort is not None:
            return last_resort
        here = self.claim.route_index
        later = enumerate(self.claim.route[here:], start=here)
        waits = {place: self._gate.breakers.wait_s(llm) for place, llm in later}
        waits[here] = wait_s
        soonest = min(waits, key=waits.__getitem__)
        return _put_off(soonest, waits[soonest] + random.uniform(0, _SPREAD_S))

    @property
    def _circuit_open(self) -> JobFailure:
        return JobFailure(FailureCode.CIRCUIT_OPEN, f"the circuit breaker of {self.claim.llm} is open")

    def _onward(self) -> Onward:
        llms = [self._catalog.llms.get(name) for name in self.claim.route]
        windows = [llm.context_window if llm else 0 for llm in llms]
        return onward(self.claim.route_index, windows, map(self._gate.breakers.is_open, self.claim.route))

    def _last_resort(self, outcome: AttemptOutcome, failure: JobFailure) -> Ending | None:
        """The stored answer of the route's tier, if it has one and the request is not to blame."""
        text = self._catalog.last_resort_of(self.claim.route)
        if text is None or failure.code not in PROVIDER_SIDE:
            return None
        result: dict[str, str | bool] = {"text": text, "finish_reason": "stop", "model": "last_resort"}
        return Ending(outcome, JobStatus.COMPLETED, result=result | {"degraded": True}, failure=failure)

    def _stopped(self) -> Ending:
        if self._stop_reason is StopReason.CANCELLED:
            return Ending(AttemptOutcome.CANCELLED, JobStatus.CANCELLED)
        # Of a lost job only the usage is booked: the fence keeps the rest of the report out.
        return Ending(AttemptOutcome.RELEASED, JobStatus.QUEUED)


EXPIRED = Ending(
    AttemptOutcome.EXPIRED,
    JobStatus.EXPIRED,
    failure=JobFailure(FailureCode.EXPIRED, "the job was not finished in its time"),
)


def completed(generation: Generation, llm: str) -> Ending:
    """The ending of an answered job."""
    result: dict[str, str | bool] = {"text": generation.text, "finish_reason": generation.finish_reason, "model": llm}
    return Ending(AttemptOutcome.COMPLETED, JobStatus.COMPLETED, result=result)


def embedded(embeddings: list[Embedding], llm: str) -> Ending:
    """The ending of a job that asked for vectors."""
    return Ending(AttemptOutcome.COMPLETED, JobStatus.COMPLETED, result={"embeddings": embeddings, "model": llm})


def _put_off(place: int, delay_s: float) -> Ending:
    """A job that waits for the LLM at a place of its route, which was not called."""
    return Ending(AttemptOutcome.RELEASED, JobStatus.QUEUED, retry_in_s=delay_s, goes_to=place, not_made=True)


def parse_embedding(stored: dict[str, Any]) -> EmbeddingRequest:  # Any: JSON that the API checked
    """The provider's request for vectors from the stored one."""
    return EmbeddingRequest(stored["input"], stored.get("encoding_format") == "base64", stored.get("dimensions"))


def parse_request(stored: dict[str, Any], *, tenant: str = "") -> GenerationRequest:  # Any: JSON that the API checked
    """The provider's request from the stored one."""
    stop = stored.get("stop") or []
    return GenerationRequest(
        messages=stored["messages"],
        max_tokens=stored["max_tokens"],
        temperature=stored.get("temperature"),
        top_p=stored.get("top_p"),
        top_k=stored.get("top_k"),
        min_p=stored.get("min_p"),
        frequency_penalty=stored.get("frequency_penalty"),
        presence_penalty=stored.get("presence_penalty"),
        stop=[stop] if isinstance(stop, str) else stop,
        seed=stored.get("seed"),
        response_format=stored.get("response_format"),
        tenant=tenant,
    )
