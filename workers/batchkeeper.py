"""The keeper: ends batches whose rows are done or whose time is over, and pauses and resumes them by their budgets.

Several may look at once: each change locks the batch and looks again at what it depends on.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from time import monotonic
from uuid import UUID

import structlog
from sqlalchemy import RowMapping
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.batch import ENDED
from models.batchcontrol import END, LOCK_BATCH, PARK, PAUSE, RESUME, SELECT_LIVE, SET_FILE_SIZE, STOP, TELL, UNPARK
from models.database import describe, fetch_all, fetch_one, transaction
from models.file import SELECT_UNMEASURED
from models.ids import new_id
from models.rerun import run_again
from models.reservation import Refusal
from models.results import OUTPUT_BYTES
from models.wakeups import DUE, Wakeups
from workers.duty import Duty

BUDGET_EXHAUSTED = "budget_exhausted"
_FILES = {"completed": "batch_output", "failed": "batch_errors"}
_MEASURED_ROWS = 10_000
_ASK_AGAIN_S = 60.0

_PATIENCE_S = 5.0
"""How long one look waits for the batches that it moves; a longer step goes on beside the looks that follow."""

_MEASURE_S = 5.0
"""Seconds between looks for files without a size, where no batch has ended here."""

_STEP_LIMIT_S = 60.0
_RESUME_LIMIT_S = 600.0
_STEPS_AT_ONCE = 2

log = structlog.get_logger()


class _StillShort(Exception):
    """The budget of a paused batch has no room for it."""


@dataclass(frozen=True, slots=True)
class _Refused:
    """What room a batch's budgets had when it did not fit, and when to ask again anyway: a new day is a new budget."""

    room: Decimal | None
    until: float


class BatchKeeper:
    """Moves batches on that nothing else moves.

    The batches of one tenant are moved one after the other, those of several tenants at once. A batch that cannot be
    moved holds up no other. To resume a batch may take minutes: it is done on ``slow_engine``, one at a time.
    """

    def __init__(self, engine: AsyncEngine, slow_engine: AsyncEngine, wakeups: Wakeups, *, writer: UUID) -> None:
        self._engine = engine
        self._slow_engine = slow_engine
        self._wakeups = wakeups
        self._writer = writer
        self._refused: dict[UUID, _Refused] = {}
        self._moving: dict[UUID, asyncio.Task[None]] = {}
        self._steps = asyncio.Semaphore(_STEPS_AT_ONCE)
        self._resumes = asyncio.Semaphore(1)
        self._empty: set[tuple[UUID, int]] = set()
        self._measure_at = 0.0

    def duties(self, interval_s: float) -> Sequence[Duty]:
        """What a relay performs of it."""
        return (Duty("batches", interval_s, self.look), Duty("sizes", interval_s, self.measure, _RESUME_LIMIT_S))

    async def close(self) -> None:
        """End what is still being moved; what was not committed is as it was."""
        moving = list(self._moving.values())
        for task in moving:
            task.cancel()
        await asyncio.gather(*moving, return_exceptions=True)

    async def look(self) -> None:
        """Look once at every batch that has not ended, and wait a little for those that are moved."""
        batches = await fetch_all(self._engine, SELECT_LIVE)
        self._refused = {batch["id"]: self._refused[batch["id"]] for batch in batches if batch["id"] in self._refused}
        of_tenants: dict[UUID, list[tuple[str, RowMapping]]] = {}
        for batch in batches:
            step = next_step(batch)
            if step is not None and not (step == "resume" and self._is_refused(batch)):
                of_tenants.setdefault(batch["tenant_id"], []).append((step, batch))
        started = []
        for tenant_id, steps in of_tenants.items():
            if tenant_id not in self._moving:
                task = self._moving[tenant_id] = asyncio.create_task(self._move_all(tenant_id, steps))
                started.append(task)
        if started:
            await asyncio.wait(started, timeout=_PATIENCE_S)

    async def _move_all(self, tenant_id: UUID, steps: Sequence[tuple[str, RowMapping]]) -> None:
        """Move the batches of a tenant, those to resume last."""
        try:
            for step, batch in sorted(steps, key=lambda pair: pair[0] == "resume"):
                await self._move(step, batch)
        finally:
            del self._moving[tenant_id]

    async def _move(self, step: str, batch: RowMapping) -> None:
        resume = step == "resume"
        try:
            async with self._resumes if resume else self._steps:
                async with asyncio.timeout(_RESUME_LIMIT_S if resume else _STEP_LIMIT_S):
                    moved = await self._change(step, batch, self._slow_engine if resume else self._engine)
        except _StillShort:
            self._refused[batch["id"]] = _Refused(batch["room"], monotonic() + _ASK_AGAIN_S)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this batch's
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("batch.not_moved", batch_id=batch["id"].hex, step=step, error=reason)
        else:
            if moved:
                log.info("batch.moved", batch_id=batch["id"].hex, step=step)
                if step in ENDED:
                    self._measure_at = 0.0

    async def _change(self, step: str, batch: RowMapping, engine: AsyncEngine) -> bool:
        async with transaction(engine) as connection:
            found = await connection.execute(LOCK_BATCH, {"id": batch["id"], "tenant_id": None})
            locked = found.mappings().one()
            if (locked["status"], locked["last_round"]) != (batch["status"], batch["last_round"]):
                return False
            await self._take(step, locked, connection)
        return True

    async def measure(self) -> None:
        """Tell the files of the batches that ended their sizes; it takes seconds for a million rows."""
        if monotonic() < self._measure_at:
            return
        self._measure_at = monotonic() + _MEASURE_S
        for batch in await fetch_all(self._slow_engine, SELECT_UNMEASURED):
            if (batch["id"], batch["last_round"]) in self._empty:
                continue
            try:
                await self._measure_files(batch)
            except SQLAlchemyError as error:
                log.warning("batch.not_measured", batch_id=batch["id"].hex, error=describe(error))

    def _is_refused(self, batch: RowMapping) -> bool:
        """Whether a budget that had no room for a batch has no more now; finding out takes a look at all its jobs."""
        refused = self._refused.get(batch["id"])
        if refused is None or monotonic() >= refused.until:
            return False
        return batch["room"] is not None and refused.room is not None and batch["room"] <= refused.room

    async def _measure_files(self, batch: RowMapping) -> None:
        empty = False
        for which, content in _FILES.items():
            size = 0
            for after in range(0, batch["total"], _MEASURED_ROWS):
                params = {"batch_id": batch["id"], "after": after, "last": after + _MEASURED_ROWS}
                measured = await fetch_one(self._slow_engine, OUTPUT_BYTES[which], params)
                size += 0 if measured is None else measured["bytes"]
            measure = {"batch_id": batch["id"], "last_round": batch["last_round"], "content": content, "bytes": size}
            await fetch_all(self._slow_engine, SET_FILE_SIZE, measure)
            empty = empty or not size
        if empty:
            self._empty.add((batch["id"], batch["last_round"]))  # a size of 0 looks as if it were not known

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
