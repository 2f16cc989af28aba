"""Maintenance: ends jobs that are past their time, and keeps budgets, usage, files and events current.

Each method is one duty, performed again and again (:meth:`Maintenance.duties`). Several processes may perform the same
one at once. A pass is made of short statements and is repeated until nothing is left to do.
"""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import structlog
from sqlalchemy import RowMapping
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from models.budget import FOLD, SWEEP_ORPHANS
from models.database import Params, describe, dump_json, fetch_all, fetch_one
from models.errors import FailureCode, JobFailure
from models.event import RAISE_ANOMALIES
from models.file import FORGET_FILE, SELECT_EXPIRED_FILES, SWEEP_FILE
from models.intake import ABANDON_DEAD_INTAKES, FORGET_INTAKE, SELECT_ABANDONED, SWEEP_ROWS
from models.job import EXPIRE_JOBS
from models.usage import MARGIN_S, ROLL_UP, SELECT_CLOSED
from models.wakeups import Wakeups
from workers.duty import Duty
from workers.rescue import EXPIRY_GRACE_S, announce_ended

_JOBS_AT_ONCE = 500
_FILES_AT_ONCE = 20
_CHUNKS_AT_ONCE = 16
"""Chunks of a file that one statement deletes: 16 MiB."""

_INTAKES_AT_ONCE = 20
_ROWS_AT_ONCE = 5000
_SILENT_S = 900.0
"""How long the writer of a batch's rows may be silent before it counts as dead: longer than an upload may take."""

_SLICE_S = 3600.0
"""Seconds of the ledger that one statement adds up."""

_MINUTE_S = 60.0
_LONG_LIMIT_S = 600.0

log = structlog.get_logger()


class Maintenance:
    """Performs the duties of maintenance.

    ``slow_engine`` is for those that may take long, so that they never hold the last connection of ``engine``.
    ``free`` are the LLMs that cost nothing.
    """

    def __init__(
        self, engine: AsyncEngine, slow_engine: AsyncEngine, wakeups: Wakeups, *, writer: UUID, free: Sequence[str]
    ) -> None:
        self._engine = engine
        self._slow_engine = slow_engine
        self._wakeups = wakeups
        self._swept_to: tuple[datetime, UUID] | None = None
        expired = JobFailure(FailureCode.EXPIRED, "the job was not finished in its time")
        self._expire_params: Params = {
            "limit": _JOBS_AT_ONCE,
            "grace_s": EXPIRY_GRACE_S,
            "writer": writer,
            "free": free,
            "error": dump_json(expired.as_wire()),
        }

    def duties(self, interval_s: float) -> Sequence[Duty]:
        """All of them; ``interval_s`` is that of those which others wait for."""
        return (
            Duty("expire", interval_s, self.expire),
            Duty("fold", interval_s, self.fold),
            Duty("sweep_files", interval_s, self.sweep_files, _LONG_LIMIT_S),
            Duty("sweep_intakes", interval_s, self.sweep_intakes, _LONG_LIMIT_S),
            Duty("sweep_orphans", _MINUTE_S, self.sweep_orphans),
            Duty("roll_up", _MINUTE_S, self.roll_up, _LONG_LIMIT_S),
            Duty("anomalies", _MINUTE_S, self.raise_anomalies),
        )

    async def expire(self) -> None:
        """End the jobs that are past their time."""
        while rows := await fetch_all(self._engine, EXPIRE_JOBS, self._expire_params):
            announce_ended(self._wakeups, rows)

    async def fold(self) -> None:
        """Fold what was settled into the budgets."""
        await fetch_all(self._engine, FOLD)

    async def sweep_orphans(self) -> None:
        """Forget what deleted budgets left behind."""
        await fetch_all(self._slow_engine, SWEEP_ORPHANS)

    async def raise_anomalies(self) -> None:
        """Look for days that cost more than they should."""
        await fetch_all(self._slow_engine, RAISE_ANOMALIES)

    async def roll_up(self) -> None:
        """Add up the entries of the ledger that are new since the last time."""
        closed = await fetch_one(self._slow_engine, SELECT_CLOSED, {"margin_s": MARGIN_S})
        assert closed is not None  # a SELECT without FROM
        params = {"until": closed["until"], "slice_s": _SLICE_S}
        while await fetch_all(self._slow_engine, ROLL_UP, params):
            pass

    async def sweep_files(self) -> None:
        """Delete files that are past their time, some megabytes at a time.

        A file that cannot be deleted is left for later, and the others have their turn before it comes again.
        """
        while files := await self._expired_files():
            for file in files:
                self._swept_to = (file["expires_at"], file["id"])
                try:
                    await self._sweep(file["id"])
                except SQLAlchemyError as error:
                    log.warning("file.not_swept", file_id=file["id"].hex, error=describe(error))
        self._swept_to = None

    async def sweep_intakes(self) -> None:
        """Delete the rows of batches that never began, some thousands at a time."""
        await fetch_all(self._slow_engine, ABANDON_DEAD_INTAKES, {"silent_s": _SILENT_S})
        for intake in await fetch_all(self._slow_engine, SELECT_ABANDONED, {"limit": _INTAKES_AT_ONCE}):
            params = {"id": intake["id"], "rows": _ROWS_AT_ONCE}
            while (swept := await fetch_one(self._slow_engine, SWEEP_ROWS, params)) and swept["rows"]:
                pass
            await fetch_all(self._slow_engine, FORGET_INTAKE, {"id": intake["id"]})

    async def _expired_files(self) -> Sequence[RowMapping]:
        after_time, after_id = self._swept_to or (None, None)
        params = {"limit": _FILES_AT_ONCE, "after_time": after_time, "after_id": after_id}
        return await fetch_all(self._slow_engine, SELECT_EXPIRED_FILES, params)

    async def _sweep(self, file_id: UUID) -> None:
        params = {"id": file_id, "chunks": _CHUNKS_AT_ONCE}
        while (swept := await fetch_one(self._slow_engine, SWEEP_FILE, params)) and swept["chunks"]:
            pass
        await fetch_all(self._slow_engine, FORGET_FILE, {"id": file_id})
