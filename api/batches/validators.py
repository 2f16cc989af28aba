"""Who validates batches: small files are read by the API's process at once, large ones by processes of their own.

Which large file is next is decided by a look at Postgres, whenever one was recorded or has been read, and every few
seconds, so that a batch whose reader died is found too, by whichever API process looks first. The rule: the tenant that
has the fewest files being read now, by any API process, and among those the one that this process has served least
recently; of a tenant's files the oldest. No tenant has all of a process's readers.
"""

import asyncio
import contextlib
import sys
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any
from uuid import UUID

import structlog
from cachetools import LRUCache, TTLCache
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from api.batches.requests import error_of
from api.batches.validation import validate
from api.batches.validator import Order
from api.ratelimits import RateLimiter
from api.settings import ApiSettings
from api.vitals import VitalSigns
from models.catalog import Catalog
from models.database import dump_json, fetch_all, read_all
from models.errors import Unavailable
from models.validation import REFUSE_BATCH, SELECT_UNREAD
from models.wakeups import Wakeups

SMALL_BYTES = 256 * 1024
PROCESSES = 3
PROCESSES_OF_TENANT = 2
TIME_LIMIT_S = 1800.0
LOOK_S = 5.0
MAX_CRASHES = 3
COMMAND = ("-m", "api.batches.validator")
_REMEMBERED = 10_000

Unread = Mapping[Any, Any]  # Any: columns of several types

log = structlog.get_logger()


class Validators:
    """Validates batches, a few at a time; the others wait in Postgres."""

    def __init__(
        self,
        settings: ApiSettings,
        engine: AsyncEngine,
        wakeups: Wakeups,
        catalog: Catalog,
        vitals: VitalSigns,
        limiter: RateLimiter,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._wakeups = wakeups
        self._catalog = catalog
        self._vitals = vitals
        self._limiter = limiter
        self._here = asyncio.Lock()
        self._look = asyncio.Event()
        self._mine: set[UUID] = set()
        self._running: dict[UUID, tuple[UUID, asyncio.Task[None]]] = {}
        self._ended: TTLCache[UUID, None] = TTLCache(_REMEMBERED, LOOK_S)  # not at once again, should they wait still
        self._crashes: LRUCache[UUID, int] = LRUCache(_REMEMBERED)
        self._served: OrderedDict[UUID, None] = OrderedDict()

    async def take(self, batch_id: UUID, size: int) -> None:
        """Validate a new batch: at once if its file is small, else in the background."""
        if size > SMALL_BYTES or self._here.locked():
            self._mine.add(batch_id)
            self._look.set()
            return
        async with self._here:
            try:
                await validate(self._engine, batch_id, self._catalog, self._vitals.router, self._wakeups, self._limiter)
            except (SQLAlchemyError, OSError, Unavailable) as error:
                log.warning("batch.waits", batch_id=batch_id.hex, error=str(error).partition("\n")[0])

    async def watch(self) -> None:
        """Take up what waits, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._look.wait()
            self._look.clear()
            if len(self._running) >= PROCESSES:
                continue
            mine = set(self._mine)
            try:
                rows = await read_all(self._engine, SELECT_UNREAD, self._known())
            except (SQLAlchemyError, OSError) as error:
                log.warning("validators.look_failed", error=str(error).partition("\n")[0])
                continue
            if not rows:
                self._mine -= mine  # others have read them
            self._start_next(rows)

    async def close(self) -> None:
        """End the processes; what they read begins anew elsewhere."""
        running = [task for _, task in self._running.values()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _known(self) -> dict[str, list[UUID]]:
        return {"mine": list(self._mine), "taken": [*self._running, *self._ended]}

    def _start_next(self, rows: Collection[Unread]) -> None:
        """Start a process for each of the next files, as far as there is room; look again if more may wait."""
        of_tenant = [tenant_id for tenant_id, _ in self._running.values()]
        waiting = [row for row in rows if of_tenant.count(row["tenant_id"]) < PROCESSES_OF_TENANT]
        places = {tenant_id: place for place, tenant_id in enumerate(self._served, 1)}
        waiting.sort(key=lambda row: (row["files_read"], places.get(row["tenant_id"], 0), row["id"]))
        chosen = waiting[: PROCESSES - len(self._running)]
        for row in chosen:
            self._start(row["id"], row["tenant_id"])
        if chosen:
            self._look.set()

    def _start(self, batch_id: UUID, tenant_id: UUID) -> None:
        self._served[tenant_id] = None
        self._served.move_to_end(tenant_id)
        if len(self._served) > _REMEMBERED:
            self._served.popitem(last=False)
        task = asyncio.create_task(self._run(batch_id))
        self._running[batch_id] = (tenant_id, task)
        task.add_done_callback(lambda ended: self._forget(batch_id, ended))

    def _forget(self, batch_id: UUID, task: "asyncio.Task[None]") -> None:
        del self._running[batch_id]
        self._ended[batch_id] = None
        self._mine.discard(batch_id)
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            log.warning("validator.not_started", batch_id=batch_id.hex, error=str(error))
        else:
            self._look.set()

    async def _run(self, batch_id: UUID) -> None:
        order = Order(batch_id=batch_id, settings=self._settings, vitals=dict(self._vitals.llms))
        process = await asyncio.create_subprocess_exec(sys.executable, *COMMAND, stdin=asyncio.subprocess.PIPE)
        assert process.stdin is not None
        try:
            process.stdin.write(order.model_dump_json().encode() + b"\n")
            with contextlib.suppress(ConnectionError):
                await process.stdin.drain()
            async with asyncio.timeout(TIME_LIMIT_S):
                code = await process.wait()
            if code:
                await self._crashed(batch_id, code)
        except TimeoutError:
            await self._end(process)
            await self._refuse(batch_id, "more time")
        finally:
            await self._end(process)
            process.stdin.close()

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            process.kill()
            await process.wait()

    async def _crashed(self, batch_id: UUID, code: int) -> None:
        """Have a file read again whose reader died, a few times."""
        log.warning("validator.ended", batch_id=batch_id.hex, code=code)
        self._crashes[batch_id] = self._crashes.get(batch_id, 0) + 1
        if self._crashes[batch_id] >= MAX_CRASHES:
            await self._refuse(batch_id, "more memory")

    async def _refuse(self, batch_id: UUID, needed: str) -> None:
        """End a batch whose file cannot be read; it could not be the next time."""
        log.warning("validator.refused", batch_id=batch_id.hex, needed=needed)
        message = f"The file takes {needed} to read than is allowed; send it in parts."
        errors = dump_json([error_of("validation_failed", message, "input_file_id", None)])
        await fetch_all(self._engine, REFUSE_BATCH, {"id": batch_id, "errors": errors})
