"""Pausing, resuming, cancelling and retrying batches: each one transaction, repeated when it met another's lock."""

from collections.abc import Awaitable, Callable, Collection
from typing import Final, TypeVar
from uuid import UUID

from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.batches.quotas import RowQuota
from api.reserving import budget_exceeded
from api.shares import Control
from models.batch import BY_HAND, ENDED
from models.batchcontrol import CANCEL_JOBS, LOCK_BATCH, PARK, PAUSE, RESUME, STOP, TELL, UNPARK
from models.database import DatabaseFailure, classify, transaction
from models.errors import BatchBusy, BatchFinished, NotFound, NothingToRetry
from models.rerun import NOT_COMPLETED, Rerun, run_again
from models.reservation import Refusal
from models.wakeups import CANCEL, DUE, FINISHED, Wakeups

REQUESTED: Final = "requested"
_TRIES = 5
T = TypeVar("T")


class BatchControl:
    """What callers do to their batches; each raises NotFound for another tenant's."""

    def __init__(self, engine: AsyncEngine, wakeups: Wakeups, control: Control) -> None:
        self._engine = engine
        self._wakeups = wakeups
        self._control = control

    async def pause(self, tenant_id: UUID, batch_id: UUID) -> None:
        """Let no further row start; those that run go on. Raises BatchFinished and BatchBusy."""

        async def change(connection: AsyncConnection) -> None:
            batch = await _lock(connection, tenant_id, batch_id)
            if (batch["status"], batch["pause_reason"]) == ("paused", REQUESTED):
                return
            _allow(batch, "in_progress", "paused")
            await connection.execute(PAUSE, {"id": batch_id, "reason": REQUESTED})
            await connection.execute(PARK, {"id": batch_id})
            if batch["status"] == "in_progress":
                await connection.execute(TELL, {"id": batch_id, "what": "paused"})

        async with self._control.one_of(tenant_id):
            await self._surely(change)

    async def resume(self, tenant_id: UUID, batch_id: UUID) -> None:
        """Let rows start again, those too whose budget was short; raises BudgetExceeded where it still is,
        BatchFinished and BatchBusy."""

        async def change(connection: AsyncConnection) -> None:
            batch = await _lock(connection, tenant_id, batch_id)
            if batch["status"] == "in_progress":
                return
            _allow(batch, "paused")
            _fits(await run_again(connection, batch, BY_HAND, only_unpaid=True))
            await connection.execute(RESUME, {"id": batch_id})
            await connection.execute(UNPARK, {"id": batch_id})
            await connection.execute(TELL, {"id": batch_id, "what": "resumed"})

        async with self._control.long_one_of(tenant_id):
            await self._surely(change)
        self._wakeups.announce(DUE)

    async def cancel(self, tenant_id: UUID, batch_id: UUID) -> None:
        """End a batch: what waits is cancelled, what runs is stopped, what is finished stays. Raises BatchFinished
        and BatchBusy."""

        async def change(connection: AsyncConnection) -> list[RowMapping]:
            batch = await _lock(connection, tenant_id, batch_id)
            if batch["status"] in ("cancelling", "cancelled"):
                return []
            _allow(batch, "validating", "in_progress", "paused")
            await connection.execute(STOP, {"id": batch_id, "status": "cancelling"})
            asked = await connection.execute(CANCEL_JOBS, {"id": batch_id, "writer": BY_HAND})
            return list(asked.mappings())

        async with self._control.one_of(tenant_id):
            jobs = await self._surely(change)
        for channel, status in ((FINISHED, "cancelled"), (CANCEL, "in_progress")):
            ids = [job["id"].hex for job in jobs if job["status"] == status]
            if ids:
                self._wakeups.announce(channel, ids)
        self._wakeups.announce(DUE)

    async def retry(
        self, tenant_id: UUID, batch_id: UUID, quota: RowQuota, statuses: Collection[str] = NOT_COMPLETED
    ) -> None:
        """Let the rows that ended so run again, with a fresh deadline if the batch had ended; raises BudgetExceeded,
        RateLimited, NothingToRetry and BatchBusy."""

        async def change(connection: AsyncConnection) -> None:
            await quota.give_back()  # what a try before took, that met another's lock
            batch = await _lock(connection, tenant_id, batch_id)
            _allow(batch, "in_progress", "paused", "completed", "expired", "cancelled")
            again = _fits(await run_again(connection, batch, BY_HAND, statuses=statuses))
            if not again.rows:
                raise NothingToRetry(f"No row of the batch is {' or '.join(sorted(statuses))}.")
            await quota.take(sum(again.rows.values()), 0)

        async with self._control.long_one_of(tenant_id):
            try:
                await self._surely(change)
            except BaseException:
                await quota.give_back()
                raise
        self._wakeups.announce(DUE)

    async def _surely(self, change: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        for left in reversed(range(_TRIES)):
            try:
                async with transaction(self._engine) as connection:
                    return await change(connection)
            except Exception as error:
                if classify(error) is not DatabaseFailure.CONFLICT or not left:
                    raise
        raise AssertionError("unreachable")


async def _lock(connection: AsyncConnection, tenant_id: UUID, batch_id: UUID) -> RowMapping:
    batch = (await connection.execute(LOCK_BATCH, {"id": batch_id, "tenant_id": tenant_id})).mappings().one_or_none()
    if batch is None:
        raise NotFound("There is no such batch.")
    return batch


def _allow(batch: RowMapping, *statuses: str) -> None:
    if batch["status"] in statuses:
        return
    refusal = BatchFinished if batch["status"] in ENDED else BatchBusy
    raise refusal(f"The batch is {batch['status']}.")


def _fits(again: Rerun | Refusal) -> Rerun:
    if isinstance(again, Refusal):
        raise budget_exceeded(again)
    return again
