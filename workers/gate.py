"""The way to an LLM: past its circuit breaker, and with a permit where its calls are limited."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from workers.breaker import Breakers, Health, Refused
from workers.permits import Permits


@dataclass(slots=True)
class Entry:
    """A call that may be made; whoever makes it says afterwards how well the LLM is."""

    health: Health = Health.UNKNOWN


@dataclass(frozen=True, slots=True)
class Busy:
    """Every permit is taken."""


class Gate:
    """Lets the calls of one process through, or says why not."""

    def __init__(self, breakers: Breakers, permits: Permits) -> None:
        self.breakers = breakers
        self._permits = permits

    @contextlib.asynccontextmanager
    async def enter(self, llm: str) -> AsyncIterator[Entry | Refused | Busy]:
        """The way in for one call, for as long as the block lasts."""
        passed = await self.breakers.admit(llm)
        if isinstance(passed, Refused):
            yield passed
            return
        entry = Entry()
        try:
            async with self._permits.hold(llm) as held:
                yield entry if held else Busy()
        finally:
            await self.breakers.record(llm, passed, entry.health)
