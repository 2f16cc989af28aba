"""The lease of one process: registered at its start, renewed by its heartbeat, given back at its end.

::

                 a beat succeeds
     [ doubted ] ---------------> [ current ]
          ^                            |
          +--- a beat fails, half a lease passes without one, or a claim finds Postgres away

While it is doubted, the process takes no new work: what it claims now could not be reported or renewed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import describe, dump_json, fetch_all, fetch_one
from models.ids import new_id
from models.process import DEREGISTER, HEARTBEAT, REGISTER

_RETRY_S = 1.0

Report = Sequence[dict[str, Any]]  # Any: JSON

log = structlog.get_logger()


class Lease:
    """One row of ``processes``, kept alive from one event loop.

    ``id`` changes when the lease was lost: what was claimed under the old one is no longer this process's.
    ``on_change`` is called each time when the lease becomes current or doubted.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        role: str,
        name: str,
        queues: Collection[str],
        capacity: int,
        lease_s: float,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.id: UUID = new_id()
        self._engine = engine
        self._identity = {"role": role, "name": name, "queues": sorted(queues), "capacity": capacity}
        self._lease_s = lease_s
        self._registered = False
        self._on_change = on_change
        self._current = asyncio.Event()
        self._tried = asyncio.Event()
        self._doubt_timer: asyncio.TimerHandle | None = None
        self._reported: Report = ()
        self._soon = asyncio.Event()

    async def keep(
        self,
        *,
        in_flight: Callable[[], int] = lambda: 0,
        waiting: Callable[[], Collection[UUID]] = lambda: (),
        models: Callable[[], Report] = lambda: (),
        after_beat: Callable[[], Awaitable[None]] | None = None,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """Beat for ever, three times per lease; ``on_lost`` is called when the lease was taken away,
        ``after_beat`` after each renewal. ``models`` are what is loaded, told when it has changed. Postgres may go
        away and come back."""
        while True:
            self._soon.clear()
            try:
                await self._beat(in_flight(), waiting(), models(), on_lost)
                self._confirm()
                if after_beat is not None:
                    await after_beat()
                delay_s = self._lease_s / 3
            except (SQLAlchemyError, OSError) as error:
                log.warning("lease.beat_failed", error=describe(error))
                self._set_doubted()
                delay_s = min(_RETRY_S, self._lease_s / 3)
            self._tried.set()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._soon.wait(), delay_s)

    @property
    def is_current(self) -> bool:
        """Whether the last beat succeeded, not more than half a lease ago."""
        return self._current.is_set()

    async def until_current(self) -> None:
        """Wait until the lease is current."""
        await self._current.wait()

    async def tried(self) -> None:
        """Wait until the first beat succeeded or failed."""
        await self._tried.wait()

    def doubt(self) -> None:
        """Note that Postgres cannot be used; the next beat comes at once and tells whether it can again."""
        if self.is_current:
            self._set_doubted()
            self.beat_soon()

    def beat_soon(self) -> None:
        """Let the next beat come at once, since there is something to tell."""
        self._soon.set()

    async def give_back(self) -> None:
        """Remove the process's row; its jobs, if any are left, are taken back at once."""
        try:
            await fetch_all(self._engine, DEREGISTER, {"id": self.id})
        except (SQLAlchemyError, OSError) as error:
            log.warning("lease.not_given_back", error=describe(error))

    def _confirm(self) -> None:
        if self._doubt_timer is not None:
            self._doubt_timer.cancel()
        self._doubt_timer = asyncio.get_running_loop().call_later(self._lease_s / 2, self._set_doubted)
        if not self.is_current:
            self._current.set()
            self._on_change()

    def _set_doubted(self) -> None:
        if self.is_current:
            self._current.clear()
            self._on_change()

    async def _beat(
        self, in_flight: int, waiting: Collection[UUID], models: Report, on_lost: Callable[[], None]
    ) -> None:
        if not self._registered:
            await fetch_all(self._engine, REGISTER, {"id": self.id, "lease_s": self._lease_s, **self._identity})
            self._registered, self._reported = True, ()
            if models:
                self._soon.set()
            return
        news = None if list(models) == list(self._reported) else dump_json(models)
        params = {"id": self.id, "lease_s": self._lease_s, "in_flight": in_flight, "waiting": list(waiting)}
        if await fetch_one(self._engine, HEARTBEAT, params | {"models": news}) is None:
            log.warning("lease.lost", id=self.id.hex)
            self.id, self._registered = new_id(), False
            on_lost()
            await self._beat(0, (), (), on_lost)
            return
        self._reported = models
