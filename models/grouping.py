"""Group commit: callers that arrive together share one statement and one disk flush.

While one group is being written, the next one gathers; there is no timer, so a lone caller waits
for nothing. It is what makes a durable submission, claim or completion cheap under load.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class GroupCommit(Generic[T, R]):
    """Gathers items and hands them to ``flush`` in groups, at most ``limit`` at a time.

    ``flush`` returns one result per item, in order. When it raises an error that ``shared_fate``
    accepts (the server is away), every caller of the group gets it; after any other, the items are
    flushed one by one, so that a row that Postgres refuses fails alone.
    ``key`` keeps two items of one key out of the same group.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        limit: int = 256,
        shared_fate: Callable[[BaseException], bool] = lambda _: False,
        key: Callable[[T], Hashable] | None = None,
    ) -> None:
        self._flush = flush
        self._limit = limit
        self._shared_fate = shared_fate
        self._key = key
        self._pending: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._flusher: asyncio.Task[None] | None = None

    async def submit(self, item: T) -> R:
        """Add an item to the next group and wait for its result; a cancelled caller's item is
        written all the same."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._pending.append((item, future))
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._run())
        return await future

    async def idle(self) -> None:
        """Wait until everything that was submitted has been flushed, whoever still waits for it."""
        while self._flusher is not None:
            await asyncio.wait([self._flusher])

    async def _run(self) -> None:
        try:
            while self._pending:
                # One turn of the loop lets callers that are ready right now join this group.
                await asyncio.sleep(0)
                await self._flush_group(self._take_group())
        finally:
            self._flusher = None

    def _take_group(self) -> list[tuple[T, asyncio.Future[R]]]:
        group: list[tuple[T, asyncio.Future[R]]] = []
        held_back: list[tuple[T, asyncio.Future[R]]] = []
        keys: set[Hashable] = set()
        while self._pending and len(group) < self._limit:
            entry = self._pending.popleft()
            key = self._key(entry[0]) if self._key else None
            if key is not None and key in keys:
                held_back.append(entry)
                continue
            keys.add(key)
            group.append(entry)
        self._pending.extendleft(reversed(held_back))
        return group

    async def _flush_group(self, group: list[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            results = await self._flush([item for item, _ in group])
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the callers
            if len(group) > 1 and not self._shared_fate(error):
                for entry in group:
                    await self._flush_group([entry])
                return
            for _, future in group:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(group, results, strict=True):
            if not future.done():
                future.set_result(result)
