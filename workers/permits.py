"""How many calls to an LLM are in flight over all processes: permits in Redis, ``max_concurrency`` of them.

A permit is a member of a sorted set whose score is when it expires; holders renew theirs, so those of a dead process
come free by themselves. A process that paused beyond the lease finds its permits gone while its calls still run: they
are counted again, above the limit if others took their room meanwhile, so that nobody starts another before there is
room. When Redis is away each process keeps to ``max_concurrency`` alone.
"""

import asyncio
import contextlib
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from time import monotonic
from uuid import uuid4

import structlog

from models.catalog import Catalog
from models.shared import Shared, SharedAway

LEASE_S = 10.0
WAIT_S = 1.0
"""How long a job may hold its place in this process and wait; after that others get the place."""

_PREFIX = "headrace:permits:"
_POLL_S = 0.1
_AWAY_S = 1.0

log = structlog.get_logger()

ACQUIRE = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3] * 2)
return 1
"""
"""Take a permit, if one is free: its token, how many there are, its lease in milliseconds."""

RENEW = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local gone = {}
for i = 2, #ARGV do
    if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
        redis.call('ZADD', KEYS[1], 'XX', now + ARGV[1], ARGV[i])
    else
        gone[#gone + 1] = ARGV[i]
    end
end
redis.call('PEXPIRE', KEYS[1], ARGV[1] * 2)
return gone
"""
"""Keep permits that are in use: their lease in milliseconds, their tokens. Returns the tokens that expired or were
given back: whether their calls still run only their process knows."""

RECOUNT = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1] * 2)
return redis.call('ZCARD', KEYS[1])
"""
"""Count calls that run without a permit: the lease in milliseconds, their tokens. Returns how many run now."""

RELEASE = "return redis.call('ZREM', KEYS[1], ARGV[1])"
"""Give a permit back, by its token."""


class Permits:
    """The permits that one process holds, for one event loop; :meth:`keep` must run beside the calls."""

    def __init__(self, shared: Shared, catalog: Catalog) -> None:
        self._shared = shared
        self._most = {name: llm.max_concurrency for name, llm in catalog.llms.items() if llm.max_concurrency}
        self._held: defaultdict[str, set[str]] = defaultdict(set)
        self._turn: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._freed: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._errands: set[asyncio.Task[None]] = set()
        self._away_until = 0.0

    @contextlib.asynccontextmanager
    async def hold(self, llm: str) -> AsyncIterator[bool]:
        """Hold a permit for a call; False when none came free in time, True also for an LLM without a limit."""
        if llm not in self._most:
            yield True
            return
        token = uuid4().hex
        taken = False
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT_S):
                    await self._take(llm, token)
                taken = True
            yield taken
        finally:
            self._held[llm].discard(token)
            self._freed[llm].set()
            # Also one not taken: the script may have run although its answer came too late.
            self._give_back(llm, token)

    async def keep(self) -> None:
        """Renew what is held, three times per lease, for ever."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            try:
                for llm in list(self._held):
                    await self._renew(llm)
            except SharedAway as error:
                self._stand_alone(error)

    async def _renew(self, llm: str) -> None:
        """Renew the permits of one LLM, and count the calls again whose permits are gone."""
        held, key, lease_ms = self._held[llm], _PREFIX + llm, round(LEASE_S * 1000)
        if not held:
            return
        gone = {_to_text(token) for token in await self._shared.run(RENEW, key, lease_ms, *held)}
        if lost := gone & held:
            running = await self._shared.run(RECOUNT, key, lease_ms, *lost)
            log.warning("permits.recounted", llm=llm, calls=len(lost), running=running, most=self._most[llm])
            for token in lost - held:  # a call that ended meanwhile
                self._give_back(llm, token)

    async def _take(self, llm: str, token: str) -> None:
        async with self._turn[llm]:
            while not await self._try(llm, token):
                self._freed[llm].clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_S * random.uniform(0.5, 1.5)):
                        await self._freed[llm].wait()

    async def _try(self, llm: str, token: str) -> bool:
        most, held = self._most[llm], self._held[llm]
        if len(held) >= most:
            return False
        if monotonic() >= self._away_until:
            try:
                if not await self._shared.run(ACQUIRE, _PREFIX + llm, token, most, round(LEASE_S * 1000)):
                    return False
            except SharedAway as error:
                self._stand_alone(error)
        held.add(token)
        return True

    def _give_back(self, llm: str, token: str) -> None:
        errand = asyncio.create_task(self._release(llm, token))
        self._errands.add(errand)
        errand.add_done_callback(self._errands.discard)

    async def _release(self, llm: str, token: str) -> None:
        with contextlib.suppress(SharedAway):  # then its lease runs out
            await self._shared.run(RELEASE, _PREFIX + llm, token)

    def _stand_alone(self, error: SharedAway) -> None:
        if monotonic() >= self._away_until:
            log.warning("permits.redis_away", error=str(error))
        self._away_until = monotonic() + _AWAY_S


def _to_text(token: bytes | str) -> str:
    return token.decode() if isinstance(token, bytes) else token
