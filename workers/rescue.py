"""The rescuer: takes back what processes held that :mod:`workers.reaper` removed, ends what is past its time, and folds
what was settled into the budgets.

Several may run at once. Each pass is bounded and repeated until nothing is left.
"""

from collections.abc import Collection
from time import monotonic
from uuid import UUID

import structlog
from sqlalchemy import TextClause
from sqlalchemy.ext.asyncio import AsyncEngine

from models.attempt import RESCUE
from models.budget import FOLD, SWEEP_ORPHANS
from models.catalog import Catalog
from models.database import Params, dump_json, fetch_all
from models.errors import FailureCode, JobFailure
from models.event import RAISE_ANOMALIES
from models.file import SWEEP_FILES
from models.job import EXPIRE_JOBS
from models.wakeups import DUE, FINISHED, Wakeups
from workers.lostwork import LostWork

BATCH = 500
EXPIRY_GRACE_S = 60.0
"""How long a running job may pass its expiry before it is ended over its worker's head."""
FILES_AT_ONCE = 5
"""Expired files that are deleted at one pass; each may have a gigabyte."""
ANOMALY_S = 60.0
"""Seconds between looks for days that cost more than they should, and for what deleted budgets left behind."""

log = structlog.get_logger()


class Rescuer:
    """Rescues jobs of processes that are gone, expires jobs, and keeps budgets and their events current."""

    def __init__(
        self,
        engine: AsyncEngine,
        wakeups: Wakeups,
        *,
        max_deliveries: int,
        local_queues: Collection[str],
        writer: UUID,
        catalog: Catalog,
        anomaly_s: float = ANOMALY_S,
    ) -> None:
        self._engine = engine
        self._wakeups = wakeups
        self._anomaly_s = anomaly_s
        self._look_at = 0.0
        self._lost = LostWork(engine, catalog, writer=writer, grace_s=EXPIRY_GRACE_S)
        expired = JobFailure(FailureCode.EXPIRED, "the job was not finished in its time")
        killer = JobFailure(FailureCode.MAX_DELIVERIES, f"{max_deliveries} workers were lost while they ran this job")
        self._rescue_params: Params = {
            "limit": BATCH,
            "max_deliveries": max_deliveries,
            "local_queues": list(local_queues),
            "writer": writer,
            "free": self._lost.free,
            "max_deliveries_error": dump_json(killer.as_wire()),
            "expired_error": dump_json(expired.as_wire()),
        }
        self._expire_params: Params = {
            "limit": BATCH,
            "grace_s": EXPIRY_GRACE_S,
            "writer": writer,
            "free": self._lost.free,
            "error": dump_json(expired.as_wire()),
        }

    async def sweep(self) -> None:
        """One pass over the jobs of dead processes, and expired jobs."""
        await self.rescue()
        await self._repeat(EXPIRE_JOBS, self._expire_params)
        await fetch_all(self._engine, FOLD)
        await fetch_all(self._engine, SWEEP_FILES, {"limit": FILES_AT_ONCE})
        if monotonic() >= self._look_at:
            self._look_at = monotonic() + self._anomaly_s
            await fetch_all(self._engine, SWEEP_ORPHANS)
            await fetch_all(self._engine, RAISE_ANOMALIES)

    async def rescue(self) -> None:
        """Take back the jobs of processes that are gone, once what they may have cost is booked."""
        if booked := await self._lost.book():
            log.warning("jobs.estimated", jobs=booked)
        rescued = await self._repeat(RESCUE, self._rescue_params)
        if rescued:
            log.warning("jobs.rescued", jobs=rescued)

    async def _repeat(self, statement: TextClause, params: Params) -> int:
        total = 0
        while True:
            rows = await fetch_all(self._engine, statement, params)
            finished = [row["id"].hex for row in rows if row["status"] != "queued"]
            if finished:
                self._wakeups.announce(FINISHED, finished)
            if rows:
                self._wakeups.announce(DUE)
            total += len(rows)
            if len(rows) < BATCH:
                return total
