"""The places of a worker process: how many jobs it runs at a time, and whose turn it is when one is free."""

import asyncio
from collections import deque
from dataclasses import dataclass

_AHEAD = 8
_KEPT_FREE = 16


@dataclass(frozen=True, slots=True)
class _Waiter:
    turn: asyncio.Future[None]
    single: bool


class Places:
    """So many places, given in the order of asking. Used on one event loop.

    A sixteenth of them is for single jobs only: rows of batches, which may take minutes each, leave them free. Single
    jobs go before rows while they hold less than an eighth; with no such limit one tenant's single jobs would stop
    another's batch, which the relay has published in its fair turn.
    """

    def __init__(self, number: int) -> None:
        self._free = number
        self._kept_free = number // _KEPT_FREE
        self._most_ahead = max(1, number // _AHEAD)
        self._singles = 0
        self._waiters: deque[_Waiter] = deque()

    async def take(self, wanted: int, *, single: bool) -> int:
        """Wait for one place, then take as many as are free, up to ``wanted``; gives how many."""
        taken = 0
        if not self._free_for(single):
            waiter = _Waiter(asyncio.get_running_loop().create_future(), single)
            self._waiters.append(waiter)
            try:
                await waiter.turn
            except asyncio.CancelledError:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
                else:
                    self.give_back(single=single)
                raise
            taken = 1
        more = min(wanted - taken, self._free_for(single))
        self._take(more, single)
        return taken + more

    def give_back(self, *, single: bool) -> None:
        """Free one place, which goes to whoever's turn it is."""
        self._take(-1, single)
        while (waiter := self._next()) is not None:
            self._waiters.remove(waiter)
            self._take(1, waiter.single)
            waiter.turn.set_result(None)

    def _free_for(self, single: bool) -> int:
        return self._free if single else max(0, self._free - self._kept_free)

    def _take(self, number: int, single: bool) -> None:
        self._free -= number
        self._singles += number * single

    def _next(self) -> _Waiter | None:
        """Who of those that wait gets a place now."""
        single = next((waiter for waiter in self._waiters if waiter.single), None)
        if single is not None and self._free and (self._singles < self._most_ahead or not self._free_for(single=False)):
            return single
        return self._waiters[0] if self._waiters and self._free_for(self._waiters[0].single) else None
