"""The circuit breaker's rules, as a pure state machine over a clock that is passed in.

::

               failures in the window            cool-down over
    [ closed ] -----------------------> [ open ] --------------> [ half_open ]
        ^                                  ^                       |        |
        |                                  +------ a probe fails --+        |
        +------------------------- enough probes in a row succeed ----------+

Half open, one call at a time is let through: the probe, under a lease that it renews. What a call says about an LLM's
health is counted in points: 2 for a failure, 1 for a rate limit, 0 for an answer. The same rules run in Redis
(:mod:`models.breakers`), where all processes share them; these serve a process that is cut off from it.
"""

from dataclasses import dataclass, field
from enum import StrEnum

SLOTS = 10
FAILURE_POINTS = 2
RATE_LIMIT_POINTS = 1
NEXT_LOOK_MS = 1000
"""How long at most a caller is told to wait while a probe is under way."""


class CircuitState(StrEnum):
    """Where an LLM's breaker is."""

    CLOSED = "closed"
    """Calls pass."""

    OPEN = "open"
    """Calls are refused until the cool-down is over."""

    HALF_OPEN = "half_open"
    """One call at a time passes, to see whether the LLM is well again."""


@dataclass(frozen=True, slots=True)
class CircuitRules:
    """The breaker's numbers; times in milliseconds."""

    window_ms: int
    min_calls: int
    error_rate: float
    cooldown_ms: int
    max_cooldown_ms: int
    successes: int
    probe_lease_ms: int

    @property
    def slot_ms(self) -> int:
        return max(1, self.window_ms // SLOTS)

    def opens(self, calls: int, points: int) -> bool:
        """Whether so many points in so many calls open the breaker."""
        return calls >= self.min_calls and points >= self.error_rate * FAILURE_POINTS * calls

    def cooldown_of(self, trips: int) -> int:
        """The cool-down after so many openings without a closing between them."""
        return min(self.max_cooldown_ms, self.cooldown_ms << min(trips - 1, 30))


@dataclass(frozen=True, slots=True)
class Look:
    """A breaker at one moment. ``passes``: the call that asked may be made; ``probe``: as the probe;
    ``wait_ms``: else, when to ask again; ``spotless``: closed, with no failure in its window."""

    state: CircuitState
    passes: bool = False
    probe: bool = False
    wait_ms: int = 0
    spotless: bool = False


@dataclass(slots=True)
class Circuit:
    """One LLM's breaker; ``now`` is in milliseconds of any clock that does not run backwards."""

    rules: CircuitRules
    state: CircuitState = CircuitState.CLOSED
    until: int = 0
    trips: int = 0
    successes: int = 0
    probe: str = ""
    probe_until: int = 0
    slots: dict[int, tuple[int, int]] = field(default_factory=dict)

    def peek(self, now: int) -> Look:
        """The state, changing nothing but an expired cool-down."""
        if self.state is CircuitState.OPEN and now >= self.until:
            self.state, self.successes, self.probe = CircuitState.HALF_OPEN, 0, ""
        match self.state:
            case CircuitState.CLOSED:
                return Look(self.state, passes=True, spotless=self._counted(now)[1] == 0)
            case CircuitState.OPEN:
                return Look(self.state, wait_ms=self.until - now)
            case _:
                taken_ms = self.probe_until - now if self.probe else 0
                return Look(self.state, wait_ms=max(0, min(taken_ms, NEXT_LOOK_MS)))

    def admit(self, token: str, now: int) -> Look:
        """Ask to make a call; ``token`` names the probe that it may become."""
        look = self.peek(now)
        if look.state is not CircuitState.HALF_OPEN or (self.probe and now < self.probe_until):
            return look
        self.probe, self.probe_until = token, now + self.rules.probe_lease_ms
        return Look(self.state, passes=True, probe=True)

    def renew(self, token: str, now: int) -> Look:
        """Keep the lease of a probe that is still under way."""
        if self.probe == token:
            self.probe_until = now + self.rules.probe_lease_ms
        return self.peek(now)

    def record(self, token: str, calls: int, points: int, now: int) -> Look:
        """Count calls that ended, or end a probe by its token; no calls at all give its lease back."""
        self.peek(now)
        if self.state is CircuitState.CLOSED:
            self._count(calls, points, now)
            if points and self.rules.opens(*self._counted(now)):
                self._trip(now)
        elif self.state is CircuitState.HALF_OPEN and token and token == self.probe:
            self.probe = ""
            if points:
                self._trip(now)
            elif calls:
                self.successes += 1
                if self.successes >= self.rules.successes:
                    self.state, self.trips = CircuitState.CLOSED, 0
        return self.peek(now)

    def _trip(self, now: int) -> None:
        self.trips += 1
        self.state, self.until = CircuitState.OPEN, now + self.rules.cooldown_of(self.trips)
        self.slots.clear()

    def _count(self, calls: int, points: int, now: int) -> None:
        slot = now // self.rules.slot_ms
        for old in [number for number in self.slots if number <= slot - SLOTS]:
            del self.slots[old]
        before = self.slots.get(slot, (0, 0))
        self.slots[slot] = (before[0] + calls, before[1] + points)

    def _counted(self, now: int) -> tuple[int, int]:
        oldest = now // self.rules.slot_ms - SLOTS
        recent = [counts for slot, counts in self.slots.items() if slot > oldest]
        return sum(calls for calls, _ in recent), sum(points for _, points in recent)
