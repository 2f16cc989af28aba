"""The rescuer: takes back what dead processes held.

Several may run at once. Each pass is bounded and repeated until nothing is left.
"""

from collections.abc import Sequence
from uuid import UUID

import structlog
from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncEngine

from models.attempt import RESCUE
from models.database import Params, dump_json, fetch_all
from models.errors import FailureCode, JobFailure
from models.process import REAP
from models.wakeups import DUE, FINISHED, Wakeups

BATCH = 500

log = structlog.get_logger()


class Rescuer:
    """Rescues jobs of processes whose lease ran out."""

    def __init__(
        self,
        engine: AsyncEngine,
        wakeups: Wakeups,
        *,
        lease_s: float,
        max_deliveries: int,
        writer: UUID,
    ) -> None:
        self._engine = engine
        self._wakeups = wakeups
        self._lease_s = lease_s
        expired = JobFailure(FailureCode.EXPIRED, "the job was not finished in its time")
        killer = JobFailure(FailureCode.MAX_DELIVERIES, f"{max_deliveries} workers were lost while they ran this job")
        self._rescue_params: Params = {
            "limit": BATCH,
            "max_deliveries": max_deliveries,
            "writer": writer,
            "max_deliveries_error": dump_json(killer.as_wire()),
            "expired_error": dump_json(expired.as_wire()),
        }

    async def sweep(self) -> None:
        """One pass over dead processes and their jobs."""
        for process in await fetch_all(self._engine, REAP, {"outage_grace_s": self._lease_s / 2}):
            log.warning("process.gone", role=process["role"], name=process["name"])
        rescued = 0
        while rows := await fetch_all(self._engine, RESCUE, self._rescue_params):
            announce_ended(self._wakeups, rows)
            rescued += len(rows)
        if rescued:
            log.warning("jobs.rescued", jobs=rescued)


def announce_ended(wakeups: Wakeups, rows: Sequence[RowMapping]) -> None:
    """Tell of jobs (``id``, ``status``) that ended or went back to the queue, and of the room that they leave."""
    finished = [row["id"].hex for row in rows if row["status"] != "queued"]
    if finished:
        wakeups.announce(FINISHED, finished)
    wakeups.announce(DUE)
