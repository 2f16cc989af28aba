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
_Entry = tuple[T, asyncio.Future[R]]


class GroupCommit(Generic[T, R]):
    """Gathers items and hands them to ``flush`` in groups, at most ``limit`` at a time.

    ``flush`` returns one result per item, in order. When it raises an error that ``shared_fate``
    accepts (the server is away), every caller of the group gets it; after any other, the group is split in
    halves, and so on, so that a row that Postgres refuses fails alone. The next groups do not wait for that.
    ``key`` keeps two items of one key out of the same group. ``tenant`` says whose an item is: where more wait than
    a group takes, tenants rotate in it, and a group that is split keeps each tenant's items together.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        limit: int = 256,
        shared_fate: Callable[[BaseException], bool] = lambda _: False,
        key: Callable[[T], Hashable] | None = None,
        tenant: Callable[[T], Hashable] | None = None,
    ) -> None:
        self._flush = flush
        self._limit = limit
        self._shared_fate = shared_fate
        self._key = key
        self._tenant = tenant
        self._pending: deque[_Entry[T, R]] = deque()
        self._flusher: asyncio.Task[None] | None = None
        self._splits: set[asyncio.Task[None]] = set()

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
        while self._flusher is not None or self._splits:
            await asyncio.wait([*self._splits, *([self._flusher] if self._flusher else [])])

    async def _run(self) -> None:
        try:
            while self._pending:
                # One turn of the loop lets callers that are ready right now join this group.
                await asyncio.sleep(0)
                await self._flush_group(self._take_group())
        finally:
            self._flusher = None

    def _take_group(self) -> list[_Entry[T, R]]:
        if self._tenant is not None and len(self._pending) > self._limit:
            self._pending = self._rotated(self._tenant)
        group: list[_Entry[T, R]] = []
        held_back: list[_Entry[T, R]] = []
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

    def _rotated(self, tenant: Callable[[T], Hashable]) -> deque[_Entry[T, R]]:
        """What waits, an item of each tenant in turn; a tenant's own stay in their order."""
        turns: dict[Hashable, int] = {}
        placed: list[tuple[int, int, _Entry[T, R]]] = []
        for place, entry in enumerate(self._pending):
            whose = tenant(entry[0])
            turns[whose] = turn = turns.get(whose, 0) + 1
            placed.append((turn, place, entry))
        return deque(entry for _, _, entry in sorted(placed, key=lambda each: each[:2]))

    async def _flush_group(self, group: list[_Entry[T, R]]) -> None:
        error = await self._try(group)
        if error is None:
            return
        if len(group) == 1 or self._shared_fate(error):
            _fail(group, error)
            return
        tenant = self._tenant
        if tenant is not None:
            group.sort(key=lambda entry: hash(tenant(entry[0])))
        split = asyncio.create_task(self._split(group))
        self._splits.add(split)
        split.add_done_callback(self._splits.discard)

    async def _split(self, group: list[_Entry[T, R]]) -> None:
        """Flush the halves of a group that failed, the halves of the half that fails again, and so on."""
        middle = len(group) // 2
        for half in (group[:middle], group[middle:]):
            error = await self._try(half)
            if error is None:
                continue
            if len(half) == 1 or self._shared_fate(error):
                _fail(half, error)
            else:
                await self._split(half)

    async def _try(self, group: list[_Entry[T, R]]) -> Exception | None:
        """Flush a group and give its callers their results, or return the error."""
        try:
            results = await self._flush([item for item, _ in group])
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the callers
            return error
        for (_, future), result in zip(group, results, strict=True):
            if not future.done():
                future.set_result(result)
        return None


def _fail(group: Sequence[_Entry[T, R]], error: Exception) -> None:
    for _, future in group:
        if not future.done():
            future.set_exception(error)


async def run_in_parts(
    items: Sequence[T], run: Callable[[Sequence[T]], Awaitable[object]], *, shared_fate: Callable[[BaseException], bool]
) -> list[tuple[T, Exception]]:
    """Run something for a group, and for its halves where that fails, and so on; the items that fail alone.

    Raises the error that ``shared_fate`` accepts: the others would meet it too.
    """
    if not items:
        return []
    try:
        await run(items)
    except Exception as error:
        if shared_fate(error):
            raise
        if len(items) == 1:
            return [(items[0], error)]
    else:
        return []
    middle = len(items) // 2
    first = await run_in_parts(items[:middle], run, shared_fate=shared_fate)
    return [*first, *await run_in_parts(items[middle:], run, shared_fate=shared_fate)]
