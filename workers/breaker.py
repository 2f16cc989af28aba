"""A worker's view of the circuit breakers: shared through Redis, its own when Redis is away.

A breaker known to be closed and without failures is not asked, so that a healthy LLM costs no round trip; successes
are counted in the background. From the first failure on every call asks, so that what one process learns holds for
all at once.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from time import monotonic
from uuid import uuid4

import structlog

from models.breakers import SharedBreakers, rules_of
from models.catalog import BreakerConfig
from models.circuit import FAILURE_POINTS, RATE_LIMIT_POINTS, Circuit, CircuitState, Look
from models.errors import FailureCode
from models.shared import Shared, SharedAway

LOOK_EVERY_S = 0.5

log = structlog.get_logger()


class Health(Enum):
    """What a call said of its LLM's health, in the breaker's points; None says nothing."""

    WELL = 0
    RATE_LIMITED = RATE_LIMIT_POINTS
    UNWELL = FAILURE_POINTS
    UNKNOWN = None


_SYMPTOMS = {
    FailureCode.TIMEOUT: Health.UNWELL,
    FailureCode.CONNECTION: Health.UNWELL,
    FailureCode.OVERLOADED: Health.UNWELL,
    FailureCode.RATE_LIMITED: Health.RATE_LIMITED,
    FailureCode.PROVIDER_REJECTED: Health.WELL,
    FailureCode.CONTENT_FILTERED: Health.WELL,
}
"""A provider that refuses a request has answered it. Other failures are the request's, the operator's or our own."""


SILENCE_S = 10.0


def health_of(code: FailureCode) -> Health:
    """What a failure says of the LLM's health."""
    return _SYMPTOMS.get(code, Health.UNKNOWN)


def health_at_limit(silent_s: float, limit_s: float) -> Health:
    """What it says of the LLM's health that a call reached its total limit, after so long a silence.

    An LLM that was silent, before its first token or between two, is unwell. One that was writing is asked for too
    much: the length of an answer is the caller's, and other callers' answers may be short.
    """
    return Health.UNWELL if silent_s >= min(SILENCE_S, limit_s / 2) else Health.UNKNOWN


@dataclass(frozen=True, slots=True)
class Passed:
    """The call may be made; ``probe`` is the token of the probe that it is, if it is one."""

    probe: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """The breaker is open, for about ``wait_s`` more."""

    wait_s: float


class Breakers:
    """The breakers of one process, for one event loop; :meth:`keep` must run beside the calls."""

    def __init__(self, shared: Shared, config: BreakerConfig, llms: Iterable[str]) -> None:
        self._rules = rules_of(config)
        self._store = SharedBreakers(shared, self._rules)
        self._llms = tuple(llms)
        self._looks: dict[str, Look] = {}
        self._looked_at: dict[str, float] = {}
        self._successes: Counter[str] = Counter()
        self._probes: dict[str, str] = {}
        self._alone: dict[str, Circuit] | None = None
        self._errands: set[asyncio.Task[None]] = set()

    def is_open(self, llm: str) -> bool:
        """Whether calls to an LLM are being refused, as far as this process knows."""
        look = self._looks.get(llm)
        return look is not None and look.state is not CircuitState.CLOSED

    def wait_s(self, llm: str) -> float:
        """Seconds until an open breaker lets a probe pass, as far as this process knows."""
        if not self.is_open(llm):
            return 0.0
        return max(0.0, self._looks[llm].wait_ms / 1000 - (monotonic() - self._looked_at[llm]))

    async def admit(self, llm: str) -> Passed | Refused:
        """Ask to call an LLM; every pass must be followed by :meth:`record`."""
        known = self._looks.get(llm)
        if known is not None and known.spotless:
            return Passed()
        token = uuid4().hex
        try:
            look = await self._ask("admit", llm, token)
        except asyncio.CancelledError:
            self._give_back(llm, token)
            raise
        if look.probe:
            self._probes[token] = llm
            return Passed(token)
        return Passed() if look.passes else Refused(look.wait_ms / 1000)

    async def record(self, llm: str, passed: Passed, health: Health) -> None:
        """Count a call that ended; waits for Redis only when the call was a probe or failed."""
        self._probes.pop(passed.probe, None)
        if health is Health.WELL and not passed.probe:
            self._successes[llm] += 1
        elif health is not Health.UNKNOWN or passed.probe:
            calls = self._successes.pop(llm, 0) + (health is not Health.UNKNOWN)
            await self._ask("record", llm, passed.probe, calls, health.value or 0)

    async def keep(self) -> None:
        """Look at every breaker, count successes and renew probes, for ever; Redis may go away and come back."""
        while True:
            try:
                await asyncio.gather(*map(self._tend, self._llms), *map(self._renew, list(self._probes)))
                if self._alone is not None:
                    log.info("breakers.shared_again")
                    self._alone = None
            except SharedAway as error:
                self._go_alone(error)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _tend(self, llm: str) -> None:
        calls = self._successes.pop(llm, 0)
        look = await (self._store.record(llm, "", calls, 0) if calls else self._store.peek(llm))
        self._saw(llm, look)

    async def _renew(self, token: str) -> None:
        if (llm := self._probes.get(token)) is not None:
            await self._store.renew(llm, token)

    async def _ask(self, operation: str, llm: str, token: str, calls: int = 0, points: int = 0) -> Look:
        look = None
        if self._alone is None:
            try:
                if operation == "admit":
                    look = await self._store.admit(llm, token)
                else:
                    look = await self._store.record(llm, token, calls, points)
            except SharedAway as error:
                self._go_alone(error)
        if look is None:
            circuit = self._own(llm)
            now = _now_ms()
            look = circuit.admit(token, now) if operation == "admit" else circuit.record(token, calls, points, now)
        self._saw(llm, look)
        return look

    def _give_back(self, llm: str, token: str) -> None:
        """End a probe that may have been granted to a caller who is gone."""
        errand = asyncio.create_task(self.record(llm, Passed(token), Health.UNKNOWN))
        self._errands.add(errand)
        errand.add_done_callback(self._errands.discard)

    def _saw(self, llm: str, look: Look) -> None:
        before = self._looks.get(llm)
        if look.state is not (before.state if before else CircuitState.CLOSED):
            log.warning("breaker.moved", llm=llm, state=look.state.value)
        self._looks[llm], self._looked_at[llm] = look, monotonic()

    def _go_alone(self, error: SharedAway) -> None:
        """Go on by this process's own breakers; those known to be open stay so."""
        if self._alone is None:
            log.warning("breakers.redis_away", error=str(error))
            self._alone = {}

    def _own(self, llm: str) -> Circuit:
        assert self._alone is not None  # set by _go_alone, in this very turn of the loop
        if llm not in self._alone:
            circuit = self._alone[llm] = Circuit(self._rules)
            if self.is_open(llm):
                circuit.state, circuit.until = CircuitState.OPEN, _now_ms() + round(1000 * self.wait_s(llm))
                circuit.trips = 1
        return self._alone[llm]


def _now_ms() -> int:
    return int(monotonic() * 1000)
