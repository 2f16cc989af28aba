"""What a worker exchanges with Postgres: claims one way, reports the other, each in groups.

A report is the result of work that is done and perhaps paid, so it lands whatever Postgres says to it:

==============================  ===============================================================================
Postgres is away, read-only     all reports wait and are sent again, without end
conflict, out of space          the report is sent again, without end, apart from those of other tenants
time-out                        the same, a few times; then as if it were refused
refused                         the group is split until the bad report stands alone, and this one is sent in a
                                minimal form: usage and cost, no texts, the job ``failed`` with ``internal``
the minimal form refused too    the job stays this worker's and does not run again, so it cannot cost without
                                end; the report is sent again each minute, until the worker ends (then the
                                rescue books an estimate and counts the loss) or the job expires
==============================  ===============================================================================
"""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

import structlog
from cachetools import TTLCache
from sqlalchemy import RowMapping
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from models.attempt import CLAIM, FINISH, RELEASE, SELECT_SUSPECTS, SNOOZE
from models.catalog import Catalog
from models.database import WAITING_HELPS, DatabaseFailure, classify, describe, dump_json, fetch_all, transaction
from models.errors import FailureCode, JobFailure
from models.grouping import GroupCommit, run_in_parts
from models.ids import new_id
from models.lifecycle import TERMINAL, JobStatus
from models.reservation import ADD_RESERVED, LOCK_PERIODS_OF_JOBS, choose_top_ups
from models.storable import dump_rows
from models.wakeups import DUE, FINISHED, ROOM, Wakeups
from workers.execution import Claim, Report
from workers.lease import Lease

_RETRY_S = 0.5
_RETRY_CAP_S = 5.0
_REFUSED_RETRY_S = 60.0
_TIMEOUTS = 5
"""How often a report may exceed the time limit of a statement before it is held to be the reason."""
_APART_S = 60.0
_LANES = 2
"""How many groups of reports that are apart are sent at a time; the shared ones have a connection beside them."""
_SHARED_BY_ALL = frozenset({DatabaseFailure.AWAY, DatabaseFailure.BUSY, DatabaseFailure.READ_ONLY})
_NO_MONEY = JobFailure(FailureCode.BUDGET_EXCEEDED, "what its attempts used left too little for another one").as_wire()
Row = dict[str, object]

log = structlog.get_logger()


class Form(StrEnum):
    """How a report is sent."""

    FULL = "full"

    MINIMAL = "minimal"
    """Usage, price and cost; nothing else that Postgres could refuse."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A job that may have killed processes, and must run alone (:mod:`workers.isolation`)."""

    job_id: UUID
    tenant_id: UUID


class Exchange:
    """Claims jobs and reports attempts; what runs at the same time shares one statement.

    ``writer`` is whose line of a batch's counts this process adds to. ``unreported`` are the attempts whose reports
    Postgres refuses in every form: their jobs are held and must not be released. Suspects of
    ``local_queues`` are not claimed.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        wakeups: Wakeups,
        catalog: Catalog,
        lease: Lease,
        *,
        local_queues: Collection[str] = (),
    ) -> None:
        self._engine = engine
        self._wakeups = wakeups
        self._catalog = catalog
        self._lease = lease
        self._local_queues = list(local_queues)
        self.writer = new_id()
        self.unreported: dict[UUID, asyncio.Task[None]] = {}
        self._providers = dump_json({name: llm.provider for name, llm in catalog.llms.items()})
        # Rows of batches are claimed in groups of their own: a single job does not wait for theirs.
        self._claims, self._claims_of_rows = (
            GroupCommit(self._flush_claims, shared_fate=_is_shared, key=lambda job_id: job_id) for _ in range(2)
        )
        self._snoozes: GroupCommit[Report, bool] = GroupCommit(
            self._flush_snoozes, shared_fate=_is_shared, tenant=lambda report: report.claim.tenant_id
        )
        self._reports: GroupCommit[Row, None] = GroupCommit(
            self._flush_reports,
            shared_fate=_is_shared,
            key=lambda row: row["job_id"],
            tenant=lambda row: row["tenant_id"],
        )
        self._apart: TTLCache[UUID, GroupCommit[Row, None]] = TTLCache(10_000, _APART_S)
        self._lanes = asyncio.Semaphore(_LANES)

    async def claim(self, job_id: UUID, *, is_row: bool) -> Claim | Suspect | None:
        """Take a job under this process's lease; a suspect is not taken, and None is not to be had."""
        return await (self._claims_of_rows if is_row else self._claims).submit(job_id)

    async def report(self, report: Report) -> None:
        """Settle an attempt; waits for Postgres as long as it takes, for the work is done and paid.

        Returns at once with a report that is refused in every form, which is sent again in the background.
        """
        if report.ending.not_made and await self._snooze(report):
            return
        if await self._land(report, Form.FULL) or await self._land(report, Form.MINIMAL):
            return
        attempt_id = report.claim.attempt_id
        self.unreported[attempt_id] = task = asyncio.create_task(self._insist(report))
        task.add_done_callback(lambda _: self.unreported.pop(attempt_id, None))

    async def release(self, attempt_ids: Collection[UUID]) -> None:
        """Give back jobs that this process holds and will not run; raises what Postgres does when it is away."""

        async def run(some: Sequence[UUID]) -> None:
            await fetch_all(self._engine, RELEASE, {"attempt_ids": list(some), "writer": self.writer})

        for attempt_id, error in await run_in_parts(list(attempt_ids), run, shared_fate=_is_shared):
            log.error("release.refused", attempt_id=attempt_id.hex, error=describe(error))

    def close(self) -> None:
        """Send nothing again that was refused."""
        for task in list(self.unreported.values()):
            task.cancel()

    async def _insist(self, report: Report) -> None:
        while True:
            await asyncio.sleep(_REFUSED_RETRY_S)
            if await self._land(report, Form.MINIMAL):
                return

    async def _land(self, report: Report, form: Form) -> bool:
        """Send a report until it is recorded, or until it is known that it is refused in this form."""
        row = report.as_row(self._catalog) if form is Form.FULL else report.as_minimal_row()
        tries = timeouts = 0
        while True:
            lane = self._apart.get(report.claim.tenant_id, self._reports)
            try:
                await lane.submit(row)
            except Exception as error:  # noqa: BLE001 - sorted by what it means
                failure = classify(error)
                timeouts += failure is DatabaseFailure.TIMEOUT
                if failure not in _SHARED_BY_ALL:
                    self._set_apart(report.claim.tenant_id)
                again = failure in WAITING_HELPS or (failure is DatabaseFailure.TIMEOUT and timeouts < _TIMEOUTS)
                if failure in _SHARED_BY_ALL:  # the flush has logged it, once for all
                    await asyncio.sleep(_RETRY_S)
                    continue
                what = "report.waits" if again else "report.refused"
                log.warning(what, job_id=report.claim.job_id.hex, form=form.value, error=describe(error))
                if not again:
                    return False
                await asyncio.sleep(min(_RETRY_S * 2 ** min(tries, 8), _RETRY_CAP_S))
                tries += 1
            else:
                return True

    def _set_apart(self, tenant_id: UUID) -> None:
        """Send what this tenant reports in groups of its own for a while: others do not wait for its bad report."""
        # A few groups of those apart are sent at a time, first come first served, one of each tenant: they rotate.
        self._apart[tenant_id] = self._apart.get(tenant_id) or GroupCommit(
            self._flush_apart, shared_fate=_is_away, key=lambda row: row["job_id"]
        )

    async def _snooze(self, report: Report) -> bool:
        """Whether a job that waits for its LLM was put off; if not, its report ends it."""
        while True:
            try:
                return await self._snoozes.submit(report)
            except Exception as error:  # noqa: BLE001 - sorted by what it means
                if classify(error) not in WAITING_HELPS:
                    log.warning("snooze.refused", job_id=report.claim.job_id.hex, error=describe(error))
                    return False
            await asyncio.sleep(_RETRY_S)

    async def _flush_claims(self, job_ids: Sequence[UUID]) -> Sequence[Claim | Suspect | None]:
        offers = [{"job_id": job_id, "attempt_id": new_id()} for job_id in job_ids]
        params = {
            "rows": dump_json(offers),
            "worker_id": self._lease.id,
            "providers": self._providers,
            "local_queues": self._local_queues,
        }
        rows = await fetch_all(self._engine, CLAIM, params)
        found: dict[UUID, Claim | Suspect] = {row["job_id"]: _to_claim(row) for row in rows}
        missing = [job_id for job_id in job_ids if job_id not in found]
        if missing and self._local_queues:
            found |= await self._find_suspects(missing)
        return [found.get(job_id) for job_id in job_ids]

    async def _find_suspects(self, job_ids: Sequence[UUID]) -> dict[UUID, Suspect]:
        try:
            params = {"job_ids": job_ids, "local_queues": self._local_queues}
            rows = await fetch_all(self._engine, SELECT_SUSPECTS, params)
        except (SQLAlchemyError, OSError) as error:
            # The claims of the same group were made and must be answered; suspects are published again.
            log.warning("suspects.unknown", error=describe(error))
            return {}
        return {row["id"]: Suspect(row["id"], row["tenant_id"]) for row in rows}

    async def _flush_apart(self, rows: Sequence[Row]) -> Sequence[None]:
        async with self._lanes:
            return await self._flush_reports(rows)

    async def _flush_reports(self, rows: Sequence[Row]) -> Sequence[None]:
        costly = [row for row in rows if row["goes_on_budgeted"] and row["cost_usd"]]
        plain = [row for row in rows if not (row["goes_on_budgeted"] and row["cost_usd"])] if costly else rows
        try:
            if plain:
                params = {"rows": dump_rows(plain), "writer": self.writer}
                self._announce(await fetch_all(self._engine, FINISH, params))
            if costly:
                self._announce(await self._finish_and_top_up(costly))
        except Exception as error:
            if _is_away(error):
                log.warning("reports.wait", reports=len(rows), error=describe(error))
            raise
        return [None] * len(rows)

    async def _finish_and_top_up(self, rows: Sequence[Row]) -> Sequence[RowMapping]:
        """Report attempts that cost something and whose jobs go on: a job reserves its whole worst case again
        for the next attempt, or ends as ``budget_exceeded``."""
        costs = {row["job_id"]: row["cost_usd"] for row in rows}
        async with transaction(self._engine) as connection:
            periods = await connection.execute(LOCK_PERIODS_OF_JOBS, {"job_ids": list(costs)})
            added = choose_top_ups(costs, periods.mappings())
            topped_up = [
                row | {"topped_up_usd": row["cost_usd"]}
                if row["job_id"] in added
                else row | {"status": JobStatus.FAILED, "job_error": _NO_MONEY}
                for row in rows
            ]
            params = {"rows": dump_rows(topped_up), "writer": self.writer}
            done = (await connection.execute(FINISH, params)).mappings().all()
            more = [
                {"period_id": period_id, "amount": costs[row["id"]]}
                for row in done
                for period_id in added.get(row["id"], ())
            ]
            await connection.execute(ADD_RESERVED, {"rows": dump_json(more)})
        return done

    async def _flush_snoozes(self, reports: Sequence[Report]) -> Sequence[bool]:
        """Which of these jobs were put off; one that was not is cancelled or another's, as its report will find."""
        params = {"rows": dump_rows([report.as_row(self._catalog) for report in reports])}
        rows = await fetch_all(self._engine, SNOOZE, params)
        if rows:
            self._wakeups.announce(DUE)
        put_off = {row["id"] for row in rows}
        return [report.claim.job_id in put_off for report in reports]

    def _announce(self, rows: Sequence[RowMapping]) -> None:
        finished = [row["id"].hex for row in rows if row["held"] and JobStatus(row["status"]) in TERMINAL]
        if finished:
            self._wakeups.announce(FINISHED, finished)
            self._wakeups.announce(ROOM)
        if len(finished) < len(rows):
            self._wakeups.announce(DUE)


def _is_away(error: BaseException) -> bool:
    return classify(error) in _SHARED_BY_ALL


def _is_shared(error: BaseException) -> bool:
    """Whether an error of a group would be that of each of its members too."""
    return _is_away(error) or classify(error) is DatabaseFailure.FULL


def _to_claim(row: RowMapping) -> Claim:
    return Claim(
        job_id=row["job_id"],
        tenant_id=row["tenant_id"],
        attempt_id=row["attempt_id"],
        route=tuple(row["route"]),
        route_index=row["route_index"],
        llm_failures=row["llm_failures"],
        request=row["request"],
        budgeted=row["budgeted"],
        priority=row["priority"],
        expires_in_s=row["expires_in_s"],
    )
