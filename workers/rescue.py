"""The rescuer: takes back what processes held that :mod:`workers.reaper` removed.

Several may run at once. Each pass is bounded and repeated until nothing is left.
"""

import math
from collections.abc import Collection, Sequence
from time import monotonic
from uuid import UUID

import structlog
from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncEngine

from models.attempt import RESCUE
from models.catalog import Catalog
from models.database import Params, dump_json, fetch_all
from models.errors import FailureCode, JobFailure
from models.process import SELECT_IDS
from models.wakeups import DUE, FINISHED, Wakeups
from workers.lostwork import LostWork

BATCH = 500
EXPIRY_GRACE_S = 60.0
"""How long a running job may pass its expiry before it is ended over its worker's head."""

log = structlog.get_logger()


class Rescuer:
    """Rescues jobs of processes that are gone. ``free`` are the LLMs that cost nothing.

    It searches for them when it sees that a process has gone, and every ``search_s`` seconds.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        wakeups: Wakeups,
        *,
        max_deliveries: int,
        search_s: float,
        local_queues: Collection[str],
        writer: UUID,
        catalog: Catalog,
    ) -> None:
        self._engine = engine
        self._wakeups = wakeups
        self._lost = LostWork(engine, catalog, writer=writer, grace_s=EXPIRY_GRACE_S)
        self.free = self._lost.free
        self._search_s = search_s
        self._searched_at = -math.inf
        self._processes: set[UUID] = set()
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

    async def look(self) -> None:
        """Rescue where a process has gone since the last look, or the last search is long ago; book what jobs may have
        cost that are past their time."""
        processes = {row["id"] for row in await fetch_all(self._engine, SELECT_IDS)}
        if self._processes - processes or monotonic() - self._searched_at >= self._search_s:
            await self.rescue()
        else:
            await self._book(orphans=False)
        self._processes = processes

    async def rescue(self) -> None:
        """Take back the jobs of processes that are gone, once what they may have cost is booked."""
        searched_at = monotonic()
        await self._book(orphans=True)
        rescued = 0
        while rows := await fetch_all(self._engine, RESCUE, self._rescue_params):
            announce_ended(self._wakeups, rows)
            rescued += len(rows)
        if rescued:
            log.warning("jobs.rescued", jobs=rescued)
        self._searched_at = searched_at

    async def _book(self, *, orphans: bool) -> None:
        if booked := await self._lost.book(orphans=orphans):
            log.warning("jobs.estimated", jobs=booked)


def announce_ended(wakeups: Wakeups, rows: Sequence[RowMapping]) -> None:
    """Tell of jobs (``id``, ``status``) that ended or went back to the queue, and of the room that they leave."""
    finished = [row["id"].hex for row in rows if row["status"] != "queued"]
    if finished:
        wakeups.announce(FINISHED, finished)
    wakeups.announce(DUE)
