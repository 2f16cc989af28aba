"""How many files one API process receives at once, since each may fill the disk up to the limit of its size; and whose
file is next, where few can be read at a time."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from uuid import UUID

from models.errors import RateLimited
from models.rotation import Rotation

MAX_UPLOADS = 16
MAX_UPLOADS_OF_TENANT = 4


class Uploads:
    """The uploads that this process receives now."""

    def __init__(self) -> None:
        self._of: Counter[UUID] = Counter()

    @contextmanager
    def one_of(self, tenant_id: UUID) -> Iterator[None]:
        """Count one more while it lasts; raises RateLimited."""
        if self._of[tenant_id] >= MAX_UPLOADS_OF_TENANT or self._of.total() >= MAX_UPLOADS:
            raise RateLimited("Too many files are being uploaded at this moment; try again.", retry_after_s=5)
        self._of[tenant_id] += 1
        try:
            yield
        finally:
            self._of[tenant_id] -= 1
            self._of += Counter()  # forget those that have none


class Places:
    """A few places in which tenants rotate: who was served least recently is next, and none has more than ``each``, so
    that another does not wait for the ends of one tenant's long files."""

    def __init__(self, places: int, each: int) -> None:
        self._free = places
        self._each = each
        self._held: Counter[UUID] = Counter()
        self._waiting: Rotation[tuple[UUID, asyncio.Future[None]]] = Rotation()
        self._over: dict[UUID, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def one_of(self, tenant_id: UUID) -> AsyncIterator[None]:
        """Have a place while it lasts."""
        lent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put(tenant_id, (tenant_id, lent))
        self._lend()
        try:
            await lent
            yield
        finally:
            if lent.done() and not lent.cancelled():
                self._take_back(tenant_id)
            lent.cancel()  # who waits no more is passed over

    def _lend(self) -> None:
        while self._free and self._waiting:
            tenant_id, lent = self._waiting.take()
            if lent.done():
                continue  # nobody waits for it any more
            if self._held[tenant_id] >= self._each:
                self._over.setdefault(tenant_id, deque()).append(lent)
                continue
            self._free -= 1
            self._held[tenant_id] += 1
            lent.set_result(None)

    def _take_back(self, tenant_id: UUID) -> None:
        self._free += 1
        self._held[tenant_id] -= 1
        self._held += Counter()  # forget those that hold none
        for lent in self._over.pop(tenant_id, ()):
            self._waiting.put(tenant_id, (tenant_id, lent))
        self._lend()
