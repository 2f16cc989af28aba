"""The rescuer: takes back what processes held that :mod:`workers.reaper` removed.

Several may run at once. Each pass is bounded and repeated until nothing is left.
"""

from collections.abc import Collection, Sequence
from uuid import UUID

import structlog
from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncEngine

from models.attempt import RESCUE
from models.catalog import Catalog
from models.database import Params, dump_json, fetch_all
from models.errors import FailureCode, JobFailure
from models.wakeups import DUE, FINISHED, Wakeups
from workers.lostwork import LostWork

BATCH = 500
EXPIRY_GRACE_S = 60.0
"""How long a running job may pass its expiry before it is ended over its worker's head."""

log = structlog.get_logger()


class Rescuer:
    """Rescues jobs of processes that are gone. ``free`` are the LLMs that cost nothing."""

    def __init__(
        self,
        engine: AsyncEngine,
        wakeups: Wakeups,
        *,
        max_deliveries: int,
        local_queues: Collection[str],
        writer: UUID,
        catalog: Catalog,
    ) -> None:
        self._engine = engine
        self._wakeups = wakeups
        self._lost = LostWork(engine, catalog, writer=writer, grace_s=EXPIRY_GRACE_S)
        self.free = self._lost.free
        expired = JobFailure(FailureCode.EXPIRED, "the job was not finished in its time")
        killer = JobFailure(FailureCode.MAX_DELIVERIES, f"{max_deliveries} workers were lost while they ran this job")
        self._rescue_params: Params = {
            "limit": BATCH,
            "max_deliveries": max_deliveries,
            "local_queues": list(local_queues),
            "writer": writer,
            "free": self.free,
            "max_deliveries_error": dump_json(killer.as_wire()),
            "expired_error": dump_json(expired.as_wire()),
        }

    async def rescue(self) -> None:
        """Take back the jobs of processes that are gone, once what they may have cost is booked."""
        if booked := await self._lost.book():
            log.warning("jobs.estimated", jobs=booked)
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
