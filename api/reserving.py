"""Recording groups of planned jobs: with one INSERT where no budget exists, else with their reservations."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from time import monotonic
from typing import Any, Final, TypeVar
from uuid import UUID

import structlog
from cachetools import TTLCache
from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncEngine

from api.errors import unavailable
from api.jobview import timestamp
from models.budget import OPEN_PERIODS
from models.database import DatabaseFailure, classify, describe, dump_json, fetch_all, transaction
from models.errors import BudgetExceeded, Unavailable
from models.grouping import GroupCommit
from models.ids import BUDGET, to_wire
from models.job import INSERT_JOBS
from models.pricing import as_wire
from models.reservation import (
    LOCK_BALANCES,
    RECORD_JOBS,
    RESERVE_JOBS,
    SELECT_RECORDED,
    Refusal,
    balances_by_payer,
    choose,
)
from models.wakeups import DUE, Wakeups

Job = Mapping[str, Any]  # Any: columns of several types
Outcome = RowMapping | Refusal | None
"""What became of a job: recorded, refused by a budget, or None: it exists already."""

_KEY = ("tenant_id", "idempotency_key")
_RETRY_PAUSE_S = 0.1
_NOT_RECORDED = frozenset({DatabaseFailure.BUSY, DatabaseFailure.TIMEOUT, DatabaseFailure.FULL})
"""Failures after which nothing was recorded and the caller is told at once, since waiting here helps nobody."""
_REMEMBERED_TENANTS = 10_000
_REMEMBERED_S = 60.0
_BUDGETED: Final = object()
_NOTHING = Decimal(0)
T = TypeVar("T")

log = structlog.get_logger()


class Recorder:
    """Records jobs, those of concurrent requests together.

    Postgres decides whether a tenant has budgets; this process only remembers which had some lately, to ask
    for a reservation at once.
    """

    def __init__(self, engine: AsyncEngine, wakeups: Wakeups, *, group_limit: int, retry_s: float) -> None:
        self._engine = engine
        self._wakeups = wakeups
        self._retry_s = retry_s
        self._budgeted: TTLCache[UUID, bool] = TTLCache(_REMEMBERED_TENANTS, _REMEMBERED_S)
        self._inserts: GroupCommit[Job, object] = GroupCommit(self._insert, limit=group_limit, shared_fate=_is_shared)
        self._reservations: GroupCommit[Job, Outcome] = GroupCommit(
            self._reserve, limit=group_limit, shared_fate=_is_shared
        )

    async def record(self, job: Job) -> Outcome:
        """Record a planned job with its reservations; raises Unavailable."""
        if job["tenant_id"] not in self._budgeted:
            outcome = await self._inserts.submit(job)
            if outcome is not _BUDGETED:
                assert outcome is None or isinstance(outcome, RowMapping)
                return outcome
        return await self._reservations.submit(job)

    async def _insert(self, jobs: Sequence[Job]) -> Sequence[object]:
        params = {"rows": dump_json(jobs)}
        rows = await self._surely(lambda: fetch_all(self._engine, INSERT_JOBS, params))
        budgeted = {row["budgeted"] for row in rows if row["id"] is None}
        for tenant_id in budgeted:
            self._budgeted[tenant_id] = True
        recorded: dict[UUID, Outcome] = {row["id"]: row for row in rows if row["id"] is not None}
        self._announce(recorded)
        return [_BUDGETED if job["tenant_id"] in budgeted else recorded.get(job["id"]) for job in jobs]

    async def _reserve(self, jobs: Sequence[Job]) -> Sequence[Outcome]:
        params = {"rows": dump_json(jobs)}
        rows = await self._surely(lambda: fetch_all(self._engine, RESERVE_JOBS, params))
        tight = {row["refused"] for row in rows if row["id"] is None}
        outcomes: dict[UUID, Outcome] = {row["id"]: row for row in rows if row["id"] is not None}
        if tight:
            undecided = [job for job in jobs if job["tenant_id"] in tight]
            outcomes |= await self._surely(lambda: self._decide(undecided))
        self._announce(outcomes)
        return [outcomes.get(job["id"]) for job in jobs]

    async def _decide(self, jobs: Sequence[Job]) -> dict[UUID, Outcome]:
        """Record those of a group that fit, in one transaction, and say of the others why not."""
        params = {"rows": dump_json(jobs)}
        keys = [{name: job[name] for name in _KEY} for job in jobs if job["idempotency_key"] is not None]
        async with transaction(self._engine) as connection:
            await connection.execute(OPEN_PERIODS, params)
            balances = balances_by_payer((await connection.execute(LOCK_BALANCES, params)).mappings())
            asked = {"ids": [job["id"] for job in jobs], "keys": dump_json(keys)}
            choice = choose(jobs, (await connection.execute(SELECT_RECORDED, asked)).mappings(), balances)
            short = sorted({refusal.balance.period_id for refusal in choice.refused.values()})
            record = {"rows": dump_json(choice.rows), "short": short}
            rows = (await connection.execute(RECORD_JOBS, record)).mappings().all()
        return {**{row["id"]: row for row in rows}, **choice.refused}

    def _announce(self, outcomes: Mapping[UUID, Outcome]) -> None:
        if any(isinstance(outcome, RowMapping) for outcome in outcomes.values()):
            self._wakeups.announce(DUE)

    async def _surely(self, run: Callable[[], Awaitable[T]]) -> T:
        """Run what records jobs; again, while nobody knows whether it was done, since a job id is recorded once.

        Raises Unavailable: at once when nothing was recorded, else when ``retry_s`` have passed. A server that takes no
        writes may be one that was demoted: the pool has dropped its connections, so a second try finds the new one.
        """
        deadline = monotonic() + self._retry_s
        sent = read_only = False
        while True:
            try:
                return await run()
            except Exception as error:
                failure = classify(error)
                if failure is None or failure is DatabaseFailure.REFUSED:
                    raise
                was_read_only, read_only = read_only, failure is DatabaseFailure.READ_ONLY
                sent = sent or (failure is DatabaseFailure.AWAY and _was_sent(error))
                again = sent or failure is DatabaseFailure.CONFLICT or (read_only and not was_read_only)
                if failure in _NOT_RECORDED or not again or monotonic() >= deadline:
                    log.warning("submit.unavailable", failure=failure, error=describe(error), sent=sent)
                    raise _unavailable(failure, sent) from error
            await asyncio.sleep(_RETRY_PAUSE_S)


def budget_exceeded(refusal: Refusal, kind: str = "job") -> BudgetExceeded:
    """The error that names the budget, what is left of it and what the job, or another ``kind``, asked."""
    budget = refusal.balance
    whose = "the tenant" if budget.subject is None else f"{budget.scope} {budget.subject!r}"
    period = {"day": "today", "month": "this month"}.get(budget.window, "in total")
    resets_at = None if budget.resets_at is None else timestamp(budget.resets_at)
    return BudgetExceeded(
        f"The {kind} may cost {as_wire(refusal.asked_usd)} USD; the budget of {whose} has"
        f" {as_wire(max(refusal.left_usd, _NOTHING))} USD left of {as_wire(budget.limit_usd)} {period}.",
        members={
            "budget": {
                "id": to_wire(BUDGET, budget.budget_id),
                "scope": budget.scope,
                "subject": budget.subject,
                "window": budget.window,
                "limit_usd": as_wire(budget.limit_usd),
                "remaining_usd": as_wire(max(refusal.left_usd, _NOTHING)),
                "resets_at": resets_at,
            },
            "asked_usd": as_wire(refusal.asked_usd),
        },
    )


def _was_sent(error: Exception) -> bool:
    """Whether a statement may have reached Postgres: SQLAlchemy names it in errors of its execution, and a
    connection that broke on a commit was one that worked before."""
    return getattr(error, "statement", None) is not None or bool(getattr(error, "connection_invalidated", False))


def _is_shared(error: BaseException) -> bool:
    return isinstance(error, Unavailable)


def _unavailable(failure: DatabaseFailure, sent: bool) -> Unavailable:
    if sent:
        detail = (
            "Postgres went away while the job was being recorded: whether it was is unknown."
            " Send the request again with the same Idempotency-Key; without a key, it may be recorded twice."
        )
        return Unavailable(detail, retry_after_s=1)
    return unavailable(failure, "nothing was recorded")
