"""At most so many requests of a tenant do something at a time, so that a tenant queues behind itself alone."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Executable, RowMapping
from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import Params, read_all
from models.errors import RateLimited

_READS_WAITING, _READ_WAIT_S = 8, 2.0
_CHANGES_WAITING, _CHANGE_WAIT_S = 16, 10.0
_REFUSE_AFTER_S = 0.2
"""A client that asks again at once is slowed down, so that its refusals do not keep the process busy."""

_EVERYBODY = UUID(int=0)


@dataclass(slots=True)
class _Share:
    """What a tenant has of it now: free places, and requests that hold one or wait for one."""

    free: asyncio.Semaphore
    requests: int = 0


class Shares:
    """Lets each tenant do ``at_once`` of something; up to ``waiting`` more wait, ``wait_s`` at most."""

    def __init__(self, refusal: str, *, at_once: int, waiting: int, wait_s: float) -> None:
        self._detail = refusal
        self._at_once = at_once
        self._most = at_once + waiting
        self._wait_s = wait_s
        self._shares: dict[UUID, _Share] = {}

    @asynccontextmanager
    async def one_of(self, tenant_id: UUID) -> AsyncIterator[None]:
        """Do one of it; raises RateLimited where too many of the tenant's wait already, or for too long."""
        share = self._shares.get(tenant_id)
        if share is not None and share.requests >= self._most:
            await asyncio.sleep(_REFUSE_AFTER_S)
            raise self._refusal()
        async with self._held(tenant_id, self._wait_s):
            yield

    @asynccontextmanager
    async def next_of(self, tenant_id: UUID) -> AsyncIterator[None]:
        """Do one more of what has started, however long the tenant's others take."""
        async with self._held(tenant_id, None):
            yield

    @asynccontextmanager
    async def _held(self, tenant_id: UUID, wait_s: float | None) -> AsyncIterator[None]:
        share = self._shares.setdefault(tenant_id, _Share(asyncio.Semaphore(self._at_once)))
        share.requests += 1
        try:
            try:
                async with asyncio.timeout(wait_s):
                    await share.free.acquire()
            except TimeoutError:
                raise self._refusal() from None
            try:
                yield
            finally:
                share.free.release()
        finally:
            share.requests -= 1
            if not share.requests:
                del self._shares[tenant_id]

    def _refusal(self) -> RateLimited:
        return RateLimited(self._detail, retry_after_s=max(1.0, self._wait_s))


class Reads:
    """Reads that may be long, on connections of their own, of which a tenant has half at most: each can keep a
    processor of Postgres's machine busy."""

    def __init__(self, engine: AsyncEngine, connections: int) -> None:
        self._engine = engine
        refusal = "Too many long reads of this tenant are under way; send them one after another."
        at_once = max(1, connections // 2)
        self._shares = Shares(refusal, at_once=at_once, waiting=_READS_WAITING, wait_s=_READ_WAIT_S)

    async def read_all(
        self, tenant_id: UUID, statement: Executable, params: Params | None = None
    ) -> Sequence[RowMapping]:
        """The rows of a statement; raises RateLimited where the tenant reads too much at a time."""
        async with self._shares.one_of(tenant_id):
            return await read_all(self._engine, statement, params)

    def of(self, tenant_id: UUID) -> "PagedReads":
        """For a stream, whose pages are read one after another: each waits for its turn among the tenant's reads."""
        return PagedReads(self._engine, self._shares, tenant_id)


@dataclass(frozen=True, slots=True)
class PagedReads:
    """Reads the pages of one tenant's stream; nothing is held between two of them."""

    _engine: AsyncEngine
    _shares: Shares
    _tenant_id: UUID

    async def __call__(self, statement: Executable, params: Params | None = None) -> Sequence[RowMapping]:
        """The rows of one page."""
        async with self._shares.next_of(self._tenant_id):
            return await read_all(self._engine, statement, params)


class Control:
    """Changes of many rows at once: one at a time of a tenant, and of those that may take minutes never so many that
    no connection is left for the others."""

    def __init__(self, connections: int) -> None:
        self._shares = Shares(
            "Another change of this tenant's batches or budgets is under way; try again.",
            at_once=1,
            waiting=_CHANGES_WAITING,
            wait_s=_CHANGE_WAIT_S,
        )
        self._long = Shares(
            "Other batches are being run again now; try again.",
            at_once=max(1, connections - 1),
            waiting=1000,
            wait_s=_CHANGE_WAIT_S,
        )

    @asynccontextmanager
    async def one_of(self, tenant_id: UUID) -> AsyncIterator[None]:
        """Change something of a tenant's; raises RateLimited."""
        async with self._shares.one_of(tenant_id):
            yield

    @asynccontextmanager
    async def long_one_of(self, tenant_id: UUID) -> AsyncIterator[None]:
        """Change what may take minutes; raises RateLimited."""
        async with self._shares.one_of(tenant_id), self._long.one_of(_EVERYBODY):
            yield


def cancels() -> Shares:
    """For jobs that are cancelled: each may wait for a lock on its job."""
    return Shares(
        "Too many jobs of this tenant are being cancelled at this moment; try again.",
        at_once=2,
        waiting=1000,
        wait_s=_CHANGE_WAIT_S,
    )
