"""Who validates batches: small files are read by the API's process at once, large ones by processes of their own.

A batch whose reader died is found by a look at Postgres, by whichever API process looks first.
"""

import asyncio
import contextlib
import sys
from uuid import UUID

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from api.batches.validation import validate
from api.batches.validator import Order
from api.settings import ApiSettings
from api.vitals import VitalSigns
from models.catalog import Catalog
from models.database import read_all
from models.errors import Unavailable
from models.validation import SELECT_UNREAD
from models.wakeups import Wakeups

SMALL_BYTES = 256 * 1024
PROCESSES = 2
LOOK_S = 5.0

log = structlog.get_logger()


class Validators:
    """Validates batches, a few at a time; the others wait in Postgres."""

    def __init__(
        self, settings: ApiSettings, engine: AsyncEngine, wakeups: Wakeups, catalog: Catalog, vitals: VitalSigns
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._wakeups = wakeups
        self._catalog = catalog
        self._vitals = vitals
        self._here = asyncio.Lock()
        self._running: dict[UUID, asyncio.Task[None]] = {}

    async def take(self, batch_id: UUID, size: int) -> None:
        """Validate a new batch: at once if its file is small, else in the background."""
        if size > SMALL_BYTES or self._here.locked():
            self._start(batch_id)
            return
        async with self._here:
            try:
                await validate(self._engine, batch_id, self._catalog, self._vitals.router, self._wakeups)
            except (SQLAlchemyError, OSError, Unavailable) as error:
                log.warning("batch.waits", batch_id=batch_id.hex, error=str(error).partition("\n")[0])

    async def watch(self) -> None:
        """Take up what waits, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                rows = await read_all(self._engine, SELECT_UNREAD, {"limit": PROCESSES})
            except (SQLAlchemyError, OSError) as error:
                log.warning("validators.look_failed", error=str(error).partition("\n")[0])
                continue
            for row in rows:
                self._start(row["id"])

    async def close(self) -> None:
        """End the processes; what they read begins anew elsewhere."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _start(self, batch_id: UUID) -> None:
        """Start a process for a batch, if there is room for one."""
        if batch_id in self._running or len(self._running) >= PROCESSES:
            return
        task = self._running[batch_id] = asyncio.create_task(self._run(batch_id))
        task.add_done_callback(lambda ended: self._forget(batch_id, ended))

    def _forget(self, batch_id: UUID, task: "asyncio.Task[None]") -> None:
        del self._running[batch_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("validator.not_started", batch_id=batch_id.hex, error=str(error))

    async def _run(self, batch_id: UUID) -> None:
        order = Order(batch_id=batch_id, settings=self._settings, vitals=dict(self._vitals.llms))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "api.batches.validator", stdin=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None
        try:
            process.stdin.write(order.model_dump_json().encode() + b"\n")
            with contextlib.suppress(ConnectionError):
                await process.stdin.drain()
            if code := await process.wait():
                log.warning("validator.ended", batch_id=batch_id.hex, code=code)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            process.stdin.close()
