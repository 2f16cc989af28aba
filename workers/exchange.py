"""What a worker exchanges with Postgres: claims one way, reports the other, each in groups."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

import structlog
from sqlalchemy import RowMapping
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from models.attempt import CLAIM, FINISH, SELECT_SUSPECTS, SNOOZE
from models.catalog import Catalog
from models.database import WAITING_HELPS, classify, dump_json, fetch_all, transaction
from models.errors import FailureCode, JobFailure
from models.grouping import GroupCommit
from models.ids import new_id
from models.lifecycle import TERMINAL, JobStatus
from models.reservation import ADD_RESERVED, LOCK_PERIODS_OF_JOBS, choose_top_ups
from models.wakeups import DUE, FINISHED, ROOM, Wakeups
from workers.execution import Claim, Report
from workers.lease import Lease

_RETRY_S = 0.5
_NO_MONEY = JobFailure(FailureCode.BUDGET_EXCEEDED, "what its attempts used left too little for another one").as_wire()
Row = dict[str, object]
T = TypeVar("T")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Suspect:
    """A job that may have killed processes, and must run alone (:mod:`workers.isolation`)."""

    job_id: UUID
    tenant_id: UUID


class Exchange:
    """Claims jobs and reports attempts; what runs at the same time shares one statement.

    ``writer`` is whose line of a batch's counts this process adds to. Suspects of ``local_queues`` are not claimed.
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
        self._providers = dump_json({name: llm.provider for name, llm in catalog.llms.items()})
        # Rows of batches are claimed in groups of their own: a single job does not wait for theirs.
        self._claims, self._claims_of_rows = (
            GroupCommit(self._flush_claims, shared_fate=_is_shared, key=lambda job_id: job_id) for _ in range(2)
        )
        self._reports = GroupCommit(self._flush_reports, key=lambda report: report.claim.job_id)
        self._snoozes: GroupCommit[Report, bool] = GroupCommit(self._flush_snoozes)

    async def claim(self, job_id: UUID, *, is_row: bool) -> Claim | Suspect | None:
        """Take a job under this process's lease; a suspect is not taken, and None is not to be had."""
        return await (self._claims_of_rows if is_row else self._claims).submit(job_id)

    async def report(self, report: Report) -> None:
        """Settle an attempt; waits for Postgres as long as it takes, for the work is done and paid."""
        if report.ending.not_made and await self._snoozes.submit(report):
            return
        await self._reports.submit(report)

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
            log.warning("suspects.unknown", error=str(error).partition("\n")[0])
            return {}
        return {row["id"]: Suspect(row["id"], row["tenant_id"]) for row in rows}

    async def _flush_reports(self, reports: Sequence[Report]) -> Sequence[None]:
        plain: list[Row] = []
        dear: list[Row] = []
        for report in reports:
            row = report.as_row(self._catalog)
            goes_on = report.claim.budgeted and row["status"] == JobStatus.QUEUED
            (dear if goes_on and row["cost_usd"] else plain).append(row)
        if plain:
            params = {"rows": dump_json(plain), "writer": self.writer}
            self._announce(await self._surely(lambda: fetch_all(self._engine, FINISH, params)))
        if dear:
            self._announce(await self._surely(lambda: self._finish_and_top_up(dear)))
        return [None] * len(reports)

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
            params = {"rows": dump_json(topped_up), "writer": self.writer}
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
        params = {"rows": dump_json([report.as_row(self._catalog) for report in reports])}
        rows = await self._surely(lambda: fetch_all(self._engine, SNOOZE, params))
        if rows:
            self._wakeups.announce(DUE)
        put_off = {row["id"] for row in rows}
        return [report.claim.job_id in put_off for report in reports]

    async def _surely(self, run: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await run()
            except Exception as error:
                if classify(error) not in WAITING_HELPS:
                    raise
                log.warning("report.waits", error=str(error).splitlines()[0])
                await asyncio.sleep(_RETRY_S)

    def _announce(self, rows: Sequence[RowMapping]) -> None:
        finished = [row["id"].hex for row in rows if row["held"] and JobStatus(row["status"]) in TERMINAL]
        if finished:
            self._wakeups.announce(FINISHED, finished)
            self._wakeups.announce(ROOM)
        if len(finished) < len(rows):
            self._wakeups.announce(DUE)


def _is_shared(error: BaseException) -> bool:
    """Whether an error of a group would be that of each of its members too."""
    return classify(error) in WAITING_HELPS


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
        expires_in_s=row["expires_in_s"],
    )
