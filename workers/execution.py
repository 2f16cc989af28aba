"""One attempt, told top to bottom: call the LLM, price what it used, decide what follows, report.

The job was claimed before (:mod:`workers.exchange`), its attempt row is written, and the report moves it on
in one statement, fenced by the attempt's id. Nothing here knows of Postgres or Celery.
"""

import asyncio
import random
from dataclasses import dataclass
from enum import StrEnum
from time import monotonic
from typing import Any
from uuid import UUID

import structlog

from models.catalog import LLM, Catalog
from models.errors import FailureCode, JobFailure
from models.lifecycle import AttemptOutcome, JobStatus
from models.pricing import Price, Usage, cost_of
from workers.providers.base import Generation, GenerationRequest, Meter, ProviderError
from workers.providers.registry import Providers
from workers.retries import FallBack, Retry, decide

log = structlog.get_logger()
_FREE = Price.zero()


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

    @property
    def llm(self) -> str:
        return self.route[self.route_index]

    @property
    def has_fallback(self) -> bool:
        return self.route_index + 1 < len(self.route)


class StopReason(StrEnum):
    """Why a running attempt is told to stop."""

    CANCELLED = "cancelled"
    """Its caller cancelled the job."""

    RELEASED = "released"
    """This worker is going down; the job goes back to the queue."""

    LOST = "lost"
    """The job is no longer this worker's."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended and where its job goes."""

    outcome: AttemptOutcome
    status: JobStatus
    result: dict[str, str] | None = None
    failure: JobFailure | None = None
    retry_in_s: float = 0.0
    falls_back: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """A finished attempt with all that is settled with it."""

    claim: Claim
    ending: Ending
    usage: Usage
    price: Price
    duration_ms: int
    time_to_first_token_ms: int | None

    def as_row(self, catalog: Catalog) -> dict[str, object]:
        """The row that ``models.attempt.FINISH`` takes."""
        claim, ending = self.claim, self.ending
        index = claim.route_index + 1 if ending.falls_back else claim.route_index
        failed = ending.failure is not None
        llm = catalog.llms.get(claim.route[index])
        return {
            "attempt_id": claim.attempt_id,
            "job_id": claim.job_id,
            "tenant_id": claim.tenant_id,
            "llm": claim.llm,
            "outcome": ending.outcome,
            "error": ending.failure.as_wire() if ending.failure else None,
            "duration_ms": self.duration_ms,
            "time_to_first_token_ms": self.time_to_first_token_ms,
            "input_tokens": self.usage.input_tokens,
            "output_tokens": self.usage.output_tokens,
            "input_price": self.price.input,
            "output_price": self.price.output,
            "cost_usd": cost_of(self.usage, self.price),
            "status": ending.status,
            "result": ending.result,
            "retry_in_s": ending.retry_in_s,
            "route_index": index,
            "llm_failures": 0 if ending.falls_back else claim.llm_failures + failed,
            "tier": llm.tier if llm else None,
            "queue": catalog.tiers[llm.tier].queue if llm else None,
        }


class Attempt:
    """A running attempt; :meth:`stop` ends it early, from the same event loop."""

    def __init__(self, claim: Claim, catalog: Catalog, providers: Providers) -> None:
        self.claim = claim
        self._catalog = catalog
        self._providers = providers
        self._meter = Meter()
        self._stop_reason: StopReason | None = None
        self._call: asyncio.Task[Ending] | None = None

    def stop(self, reason: StopReason) -> None:
        """Stop the call to the provider; without effect on an attempt that is done with it."""
        if self._stop_reason is None:
            self._stop_reason = reason
            if self._call is not None:
                self._call.cancel()

    async def run(self) -> Report:
        """Call, price and decide; whatever happens to the call, there is a report of it."""
        started = monotonic()
        llm = self._catalog.llms.get(self.claim.llm)
        self._call = asyncio.create_task(self._answer(llm))
        if self._stop_reason is not None:
            self._call.cancel()
        await asyncio.wait([self._call])
        ending = self._stopped() if self._call.cancelled() else self._call.result()
        first = self._meter.first_token_at
        return Report(
            self.claim,
            ending,
            self._meter.usage,
            Price(llm.input_price, llm.output_price) if llm else _FREE,
            duration_ms=round((monotonic() - started) * 1000),
            time_to_first_token_ms=None if first is None else round((first - started) * 1000),
        )

    async def _answer(self, llm: LLM | None) -> Ending:
        expires_first = llm is not None and self.claim.expires_in_s < llm.timeout_s
        limit_s = self.claim.expires_in_s if llm is None or expires_first else llm.timeout_s
        try:
            async with asyncio.timeout(limit_s):
                request = parse_request(self.claim.request)
                generation = await self._providers.get(self.claim.llm).generate(request, self._meter)
            return completed(generation, self.claim.llm)
        except TimeoutError:
            if expires_first:
                return EXPIRED
            failure = JobFailure(FailureCode.TIMEOUT, f"no answer within {limit_s:g} s")
        except ProviderError as error:
            failure = error.failure
        except Exception:
            log.exception("attempt.crashed", job_id=self.claim.job_id.hex, llm=self.claim.llm)
            failure = JobFailure(FailureCode.INTERNAL, "an unexpected error; the worker's log has it")
        return self._failed(failure, llm)

    def _failed(self, failure: JobFailure, llm: LLM | None) -> Ending:
        decision = decide(
            failure,
            failures=self.claim.llm_failures + 1,
            retries=llm.retries if llm else 0,
            has_fallback=self.claim.has_fallback,
            uniform=random.uniform,
        )
        match decision:
            case Retry(delay_s):
                return Ending(AttemptOutcome.FAILED, JobStatus.QUEUED, failure=failure, retry_in_s=delay_s)
            case FallBack():
                return Ending(AttemptOutcome.FAILED, JobStatus.QUEUED, failure=failure, falls_back=True)
            case _:
                return Ending(AttemptOutcome.FAILED, JobStatus.FAILED, failure=failure)

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
    result = {"text": generation.text, "finish_reason": generation.finish_reason, "model": llm}
    return Ending(AttemptOutcome.COMPLETED, JobStatus.COMPLETED, result=result)


def parse_request(stored: dict[str, Any]) -> GenerationRequest:  # Any: JSON that the API checked
    """The provider's request from the stored one."""
    stop = stored.get("stop") or []
    return GenerationRequest(
        messages=stored["messages"],
        max_tokens=stored["max_tokens"],
        temperature=stored.get("temperature"),
        top_p=stored.get("top_p"),
        stop=[stop] if isinstance(stop, str) else stop,
        seed=stored.get("seed"),
        response_format=stored.get("response_format"),
    )
