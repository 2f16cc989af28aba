"""Waiting for jobs to finish, without polling Postgres for each and without holding a connection.

One subscription per process hears which jobs finished. Because a wake-up is a hint that may be lost, one
statement a second also asks Postgres about all the jobs that somebody waits for.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from uuid import UUID

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import Request

from models.database import describe, read_all
from models.job import SELECT_FINISHED
from models.wakeups import FINISHED, Wakeups

SWEEP_S = 1.0

log = structlog.get_logger()


class Waiters:
    """Those who wait for a job to reach a terminal state."""

    def __init__(self, engine: AsyncEngine, wakeups: Wakeups, *, sweep_s: float = SWEEP_S) -> None:
        self._engine = engine
        self._wakeups = wakeups
        self._sweep_s = sweep_s
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._someone_waits = asyncio.Event()

    @property
    def count(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    @contextlib.contextmanager
    def watch(self, job_id: UUID) -> Iterator[asyncio.Future[None]]:
        """A future that is done once the job may have finished; re-read the job after entering."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(job_id.hex, set())
        waiting.add(future)
        self._someone_waits.set()
        try:
            yield future
        finally:
            future.cancel()
            waiting.discard(future)
            if not waiting and self._waiting.get(job_id.hex) is waiting:
                del self._waiting[job_id.hex]

    async def listen(self) -> None:
        """Wake those whose jobs are announced as finished, for ever."""
        async for _, job_ids in self._wakeups.listen(FINISHED):
            self._wake(job_ids)

    async def sweep(self) -> None:
        """Ask Postgres every second about the jobs that are waited for, for ever."""
        while True:
            await asyncio.sleep(self._sweep_s)
            if not self._waiting:
                self._someone_waits.clear()
                await self._someone_waits.wait()
                continue
            try:
                rows = await read_all(self._engine, SELECT_FINISHED, {"ids": [UUID(job) for job in self._waiting]})
            except (SQLAlchemyError, OSError) as error:
                log.warning("waiters.sweep_failed", error=describe(error))
                continue
            self._wake([row["id"].hex for row in rows])

    def _wake(self, job_ids: list[str]) -> None:
        for job_id in job_ids:
            for future in self._waiting.get(job_id, ()):
                if not future.done():
                    future.set_result(None)


async def wait_or_disconnect(request: Request, future: asyncio.Future[None], timeout_s: float) -> bool:
    """Wait for a future, a time-out or the caller's hanging up, whichever comes first; whether it was the last."""
    gone = asyncio.create_task(disconnected(request.receive))
    try:
        await asyncio.wait({future, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return gone.done() and not future.done()
    finally:
        gone.cancel()


async def disconnected(receive: Callable[[], Awaitable[object]]) -> None:
    """Wait until the caller hangs up."""
    while True:
        message = await receive()
        if isinstance(message, dict) and message["type"] == "http.disconnect":
            return
