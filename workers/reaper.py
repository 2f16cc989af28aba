"""The reaper: removes processes whose lease ran out, but only when they could have renewed it.

After a failover, a partition or a pause of the whole machine every lease may have run out although every process is
alive. So the reaper removes nothing until it has itself had contact with a Postgres that takes writes for half a lease
without a gap: by then each live process has beaten. If still no worker beats, their way to Postgres may be slower to
heal than the reaper's, and it waits for a whole lease more.

Gaps are measured by Postgres's clock, since leases are: it goes on while this process or its machine is suspended.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import fetch_all, fetch_one
from models.process import REAP, SELECT_CONTACT

log = structlog.get_logger()


class Contact:
    """Since when Postgres has been reached without a gap; pure."""

    def __init__(self, longest_gap: timedelta) -> None:
        self._longest_gap = longest_gap
        self._since: datetime | None = None
        self._last: datetime | None = None

    def extend(self, at: datetime) -> timedelta:
        """Note contact at a time; gives for how long it has lasted."""
        if self._since is None or self._last is None or at - self._last > self._longest_gap or at < self._last:
            self._since = at
        self._last = at
        return at - self._since

    def lose(self) -> None:
        """Note that there was none."""
        self._since = None


class Reaper:
    """Looks ``LOOKS`` times per lease; ``on_gone`` is called when it has removed processes."""

    LOOKS = 6

    def __init__(self, engine: AsyncEngine, *, lease_s: float, on_gone: Callable[[], Awaitable[None]]) -> None:
        self._engine = engine
        self._on_gone = on_gone
        self._lease = timedelta(seconds=lease_s)
        self._contact = Contact(self._lease / 3)

    async def look(self) -> None:
        """Remove dead processes, if it is certain that they are."""
        try:
            contact = await fetch_one(self._engine, SELECT_CONTACT)
        except BaseException:
            self._contact.lose()
            raise
        assert contact is not None
        if contact["read_only"]:
            self._contact.lose()
            return
        lasted = self._contact.extend(contact["at"])
        if lasted < self._lease / 2 or (lasted < self._lease * 1.5 and not contact["any_worker"]):
            return
        gone = await fetch_all(self._engine, REAP)
        for process in gone:
            log.warning("process.gone", role=process["role"], name=process["name"])
        if gone:
            await self._on_gone()
