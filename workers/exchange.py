"""What a worker exchanges with Postgres: claims one way, reports the other, each in groups."""

import asyncio
from collections.abc import Sequence
from uuid import UUID

import structlog
from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncEngine

from models.attempt import CLAIM, FINISH
from models.catalog import Catalog
from models.database import dump_json, fetch_all, is_transient, is_unavailable
from models.grouping import GroupCommit
from models.ids import new_id
from models.lifecycle import TERMINAL, JobStatus
from models.wakeups import DUE, FINISHED, Wakeups
from workers.execution import Claim, Report
from workers.lease import Lease

_RETRY_S = 0.5

log = structlog.get_logger()


class Exchange:
    """Claims jobs and reports attempts; what runs at the same time shares one statement."""

    def __init__(self, engine: AsyncEngine, wakeups: Wakeups, catalog: Catalog, lease: Lease) -> None:
        self._engine = engine
        self._wakeups = wakeups
        self._catalog = catalog
        self._lease = lease
        self._providers = dump_json({name: llm.provider for name, llm in catalog.llms.items()})
        self._claims = GroupCommit(self._flush_claims, shared_fate=is_unavailable, key=lambda job_id: job_id)
        self._reports = GroupCommit(self._flush_reports, key=lambda report: report.claim.job_id)

    async def claim(self, job_id: UUID) -> Claim | None:
        """Take a job under this process's lease, or None when it is not to be had."""
        return await self._claims.submit(job_id)

    async def report(self, report: Report) -> None:
        """Settle an attempt; waits for Postgres as long as it takes, for the work is done and paid."""
        await self._reports.submit(report)

    async def _flush_claims(self, job_ids: Sequence[UUID]) -> Sequence[Claim | None]:
        offers = [{"job_id": job_id, "attempt_id": new_id()} for job_id in job_ids]
        params = {"rows": dump_json(offers), "worker_id": self._lease.id, "providers": self._providers}
        rows = await fetch_all(self._engine, CLAIM, params)
        claims = {row["job_id"]: _to_claim(row) for row in rows}
        return [claims.get(job_id) for job_id in job_ids]

    async def _flush_reports(self, reports: Sequence[Report]) -> Sequence[None]:
        params = {"rows": dump_json([report.as_row(self._catalog) for report in reports])}
        while True:
            try:
                rows = await fetch_all(self._engine, FINISH, params)
                break
            except Exception as error:
                if not is_unavailable(error) and not is_transient(error):
                    raise
                log.warning("report.waits", reports=len(reports), error=str(error).splitlines()[0])
                await asyncio.sleep(_RETRY_S)
        self._announce(rows)
        return [None] * len(reports)

    def _announce(self, rows: Sequence[RowMapping]) -> None:
        finished = [row["id"].hex for row in rows if row["held"] and JobStatus(row["status"]) in TERMINAL]
        if finished:
            self._wakeups.announce(FINISHED, finished)
        if rows:
            self._wakeups.announce(DUE)


def _to_claim(row: RowMapping) -> Claim:
    return Claim(
        job_id=row["job_id"],
        tenant_id=row["tenant_id"],
        attempt_id=row["attempt_id"],
        route=tuple(row["route"]),
        route_index=row["route_index"],
        llm_failures=row["llm_failures"],
        request=row["request"],
        expires_in_s=row["expires_in_s"],
    )
