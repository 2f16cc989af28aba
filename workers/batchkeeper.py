"""The keeper: ends batches whose rows are done or whose time is over, and pauses and resumes them by their budgets.

Several may look at once: each change locks the batch and looks again at what it depends on.
"""

from collections import deque
from dataclasses import dataclass
from decimal import Decimal
from time import monotonic
from uuid import UUID

import structlog
from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.batch import ENDED
from models.batchcontrol import END, LOCK_BATCH, PARK, PAUSE, RESUME, SELECT_LIVE, SET_FILE_SIZE, STOP, TELL, UNPARK
from models.database import fetch_all, fetch_one, transaction
from models.ids import new_id
from models.rerun import run_again
from models.reservation import Refusal
from models.results import OUTPUT_BYTES, SELECT_TOTAL
from models.wakeups import DUE, Wakeups

BUDGET_EXHAUSTED = "budget_exhausted"
_FILES = {"completed": "batch_output", "failed": "batch_errors"}
_MEASURED_ROWS = 10_000
_ASK_AGAIN_S = 60.0

log = structlog.get_logger()


class _StillShort(Exception):
    """The budget of a paused batch has no room for it."""


@dataclass(frozen=True, slots=True)
class _Refused:
    """What room a batch's budgets had when it did not fit, and when to ask again anyway: a new day is a new budget."""

    room: Decimal | None
    until: float


class BatchKeeper:
    """Moves batches on that nothing else moves."""

    def __init__(self, engine: AsyncEngine, wakeups: Wakeups, *, writer: UUID) -> None:
        self._engine = engine
        self._wakeups = wakeups
        self._writer = writer
        self._refused: dict[UUID, _Refused] = {}
        self._unmeasured: deque[UUID] = deque()

    async def look(self) -> None:
        """Look once at every batch that has not ended."""
        batches = await fetch_all(self._engine, SELECT_LIVE)
        self._refused = {batch["id"]: self._refused[batch["id"]] for batch in batches if batch["id"] in self._refused}
        for batch in batches:
            step = next_step(batch)
            if step is None or (step == "resume" and self._is_refused(batch)):
                continue
            try:
                async with transaction(self._engine) as connection:
                    found = await connection.execute(LOCK_BATCH, {"id": batch["id"], "tenant_id": None})
                    locked = found.mappings().one()
                    if (locked["status"], locked["last_round"]) != (batch["status"], batch["last_round"]):
                        continue
                    await self._take(step, locked, connection)
            except _StillShort:
                self._refused[batch["id"]] = _Refused(batch["room"], monotonic() + _ASK_AGAIN_S)
                continue
            log.info("batch.moved", batch_id=batch["id"].hex, step=step)
            if step in ENDED:
                self._unmeasured.append(batch["id"])

    async def measure(self) -> None:
        """Tell the files of the batches that ended their sizes; it takes seconds for a million rows."""
        while self._unmeasured:
            await self._measure_files(self._unmeasured[0])
            self._unmeasured.popleft()

    def _is_refused(self, batch: RowMapping) -> bool:
        """Whether a budget that had no room for a batch has no more now; finding out takes a look at all its jobs."""
        refused = self._refused.get(batch["id"])
        if refused is None or monotonic() >= refused.until:
            return False
        return batch["room"] is not None and refused.room is not None and batch["room"] <= refused.room

    async def _measure_files(self, batch_id: UUID) -> None:
        row = await fetch_one(self._engine, SELECT_TOTAL, {"id": batch_id})
        total = 0 if row is None else row["total"]
        for which, content in _FILES.items():
            size = 0
            for after in range(0, total, _MEASURED_ROWS):
                params = {"batch_id": batch_id, "after": after, "last": after + _MEASURED_ROWS}
                measured = await fetch_one(self._engine, OUTPUT_BYTES[which], params)
                size += 0 if measured is None else measured["bytes"]
            await fetch_all(self._engine, SET_FILE_SIZE, {"batch_id": batch_id, "content": content, "bytes": size})

    async def _take(self, step: str, batch: RowMapping, connection: AsyncConnection) -> None:
        this = {"id": batch["id"]}
        match step:
            case "pause":
                await connection.execute(PAUSE, this | {"reason": BUDGET_EXHAUSTED})
                await connection.execute(PARK, this)
                await connection.execute(TELL, this | {"what": "paused"})
            case "resume":
                again = await run_again(connection, batch, self._writer, only_unpaid=True, with_spare=True)
                if isinstance(again, Refusal):
                    raise _StillShort
                await connection.execute(RESUME, this)
                await connection.execute(UNPARK, this)
                await connection.execute(TELL, this | {"what": "resumed"})
                self._wakeups.announce(DUE)
            case "finalizing":
                await connection.execute(STOP, this | {"status": step})
            case _:
                files = {"output_file_id": new_id(), "error_file_id": new_id()}
                await connection.execute(END, this | files | {"status": step, "writer": self._writer})


def next_step(batch: RowMapping) -> str | None:
    """What is to be done with a row of SELECT_LIVE: ``pause``, ``resume``, or the status that it moves to."""
    match batch["status"]:
        case "cancelling":
            return None if batch["running"] else "cancelled"
        case "finalizing":
            return None if batch["running"] else "expired"
        case "validating":
            return "finalizing" if batch["late"] else None
    if batch["late"]:
        return "finalizing"
    if batch["fed"] and batch["rest"] == 0 and not batch["unpaid"]:
        return "completed"
    short = batch["room"] is not None and batch["room"] < 0
    starved = short or batch["unpaid"]
    if batch["status"] == "in_progress":
        return "pause" if starved else None
    return "resume" if batch["pause_reason"] == BUDGET_EXHAUSTED and not short else None
