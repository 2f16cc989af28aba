"""The counters of rate limits: in Redis, shared exactly by every process; alone while Redis is away.

One script checks all the limits of a key and takes from all of them or from none, so no process ever sees a
count that another is about to change. Requests that arrive together share one round trip, and those of one key
one call. The rule is :class:`models.plans.Window`, said again in Lua.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from time import time_ns
from typing import cast

import redis.asyncio as redis
import structlog
from cachetools import LRUCache
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from models.grouping import GroupCommit
from models.plans import Limit, Window, charge

PREFIX = "headrace:limits:"
LOOK_AGAIN_S = 0.5
MAX_REMEMBERED = 10_000

SCRIPT = """
local now = tonumber(ARGV[1])
if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local limits, longest, answer = {}, 0, {now}
for name, quota, window, tokens in string.gmatch(ARGV[2], '(%S+) (%d+) (%d+) (%d)') do
    window = tonumber(window)
    local saved = redis.call('HMGET', KEYS[1], name .. ':start', name .. ':used', name .. ':before')
    local start, used, before = tonumber(saved[1]) or now, tonumber(saved[2]) or 0, tonumber(saved[3]) or 0
    local elapsed = now - start
    if elapsed < 0 then
        start = now
    elseif elapsed >= 2 * window then
        start, used, before = now, 0, 0
    elseif elapsed >= window then
        start, used, before = start + window, 0, used
    end
    limits[#limits + 1] = {name = name, quota = tonumber(quota), window = window, tokens = tokens == '1',
                           start = start, used = used, before = before}
    longest = math.max(longest, window)
    answer[#answer + 1] = start
end
local taken = false
for tokens, requests in string.gmatch(ARGV[3], '(%S+)/(%S+)') do
    local fits = true
    tokens, requests = tonumber(tokens), tonumber(requests)
    for _, limit in ipairs(limits) do
        limit.cost = limit.tokens and tokens or (tokens >= 0 and requests or math.min(0, requests))
        local faded = limit.before * (limit.window - (now - limit.start))
        fits = fits and faded + (limit.used + limit.cost) * limit.window <= limit.quota * limit.window
    end
    fits = fits or tokens < 0 or requests < 0
    answer[#answer + 1] = fits and 1 or 0
    for _, limit in ipairs(limits) do
        if fits then
            local used = limit.used + limit.cost
            limit.used = math.max(0, used)
            limit.before = math.max(0, limit.before + math.min(0, used))
            taken = true
        end
        answer[#answer + 1] = limit.used
        answer[#answer + 1] = limit.before
    end
end
if taken then
    for _, limit in ipairs(limits) do
        redis.call('HSET', KEYS[1], limit.name .. ':start', limit.start, limit.name .. ':used', limit.used,
                   limit.name .. ':before', limit.before)
    end
    if redis.call('PTTL', KEYS[1]) < 2 * longest then
        redis.call('PEXPIRE', KEYS[1], 2 * longest)
    end
end
return table.concat(answer, ' ')
"""
"""Takes and returns one string each of whole numbers: the client spends a microsecond on every argument."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Charge:
    """Requests of ``subject`` (one, or the rows of a batch) with so many tokens together; a negative number gives back,
    and where tokens are given back no request is taken."""

    subject: str
    limits: tuple[Limit, ...]
    tokens: int
    requests: int = 1


@dataclass(frozen=True, slots=True)
class Count:
    """Whether a charge was within its limits, when, and what their windows held afterwards."""

    accepted: bool
    now_ms: int
    windows: tuple[Window, ...]


class LocalCounters:
    """Counters of this process alone, for the subjects that were last seen."""

    def __init__(self) -> None:
        self._windows: LRUCache[str, dict[str, Window]] = LRUCache(MAX_REMEMBERED)

    def count(self, wanted: Charge, now_ms: int) -> Count:
        """Take from all the limits of a charge or from none."""
        known = self._windows.get(wanted.subject, {})
        windows = [known.get(limit.name, Window(now_ms)) for limit in wanted.limits]
        accepted, after = charge(windows, wanted.tokens, now_ms, wanted.limits, wanted.requests)
        counted = Count(accepted, now_ms, after)
        if accepted:
            self.remember(wanted, counted)
        return counted

    def remember(self, wanted: Charge, counted: Count) -> None:
        """Go on from what was counted elsewhere."""
        names = (limit.name for limit in wanted.limits)
        known = self._windows.get(wanted.subject, {})
        self._windows[wanted.subject] = known | dict(zip(names, counted.windows, strict=True))


class Counters:
    """Counts in Redis; while it does not answer within ``timeout_s``, each process goes on alone.

    The first request that meets a Redis that hangs waits for ``timeout_s``; from then on none asks it until a
    look in the background, every half second, has found it well. A process alone goes on from the counts that
    Redis last told it. ``clock`` gives unix milliseconds; without one, Redis's own clock is everybody's.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        timeout_s: float,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self._client = redis.Redis.from_url(
            redis_url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            socket_keepalive=True,
            health_check_interval=0,
            retry=Retry(NoBackoff(), 0),
        )
        self._timeout_s = timeout_s
        self._clock = clock
        self._local = LocalCounters()
        self._group: GroupCommit[Charge, Count] = GroupCommit(self._count)
        self._looking: asyncio.Task[None] | None = None
        self._sha = ""

    @property
    def shared(self) -> bool:
        """Whether Redis is asked; else this process counts alone."""
        return self._looking is None

    async def count(self, wanted: Charge) -> Count:
        """Take from all the limits of a charge or from none; never fails."""
        return await self._group.submit(wanted)

    async def close(self) -> None:
        """Close the connections, after the counts that are under way."""
        await self._group.idle()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        with contextlib.suppress(RedisError, OSError):
            await self._client.aclose()

    async def _count(self, wanted: Sequence[Charge]) -> Sequence[Count]:
        if self.shared:
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await self._count_shared(wanted)
            except (RedisError, OSError) as error:
                log.warning("limits.counted_alone", error=str(error) or type(error).__name__)
                self._looking = asyncio.create_task(self._look_again())
        now_ms = self._clock() if self._clock else time_ns() // 1_000_000
        return [self._local.count(one, now_ms) for one in wanted]

    async def _count_shared(self, wanted: Sequence[Charge]) -> Sequence[Count]:
        """One call for each key of the group, all of them in one round trip."""
        calls: dict[tuple[str, tuple[Limit, ...]], list[int]] = {}
        for number, one in enumerate(wanted):
            calls.setdefault((one.subject, one.limits), []).append(number)
        answers = await self._call([self._arguments([wanted[number] for number in group]) for group in calls.values()])
        counts: dict[int, Count] = {}
        for group, answer in zip(calls.values(), answers, strict=True):
            counts.update(zip(group, _counts(answer, wanted[group[0]].limits), strict=True))
            self._local.remember(wanted[group[-1]], counts[group[-1]])
        return [counts[number] for number in range(len(wanted))]

    async def _call(self, calls: Sequence[Sequence[str | int]]) -> Sequence[bytes]:
        if not self._sha:
            self._sha = await self._client.script_load(SCRIPT)
        try:
            return await self._call_loaded(calls)
        except NoScriptError:  # Redis was restarted; none of the calls has run
            self._sha = await self._client.script_load(SCRIPT)
            return await self._call_loaded(calls)

    async def _call_loaded(self, calls: Sequence[Sequence[str | int]]) -> Sequence[bytes]:
        if len(calls) == 1:
            return [cast(bytes, await self._client.evalsha(self._sha, 1, *calls[0]))]
        async with self._client.pipeline(transaction=False) as pipe:
            for arguments in calls:
                pipe.evalsha(self._sha, 1, *arguments)
            return cast(list[bytes], await pipe.execute())

    def _arguments(self, group: Sequence[Charge]) -> list[str | int]:
        """The key and the arguments of SCRIPT for charges that differ in their tokens and requests only."""
        now_ms = self._clock() if self._clock else ""
        wanted = " ".join(f"{one.tokens}/{one.requests}" for one in group)
        return [PREFIX + group[0].subject, now_ms, _spelt(group[0].limits), wanted]

    async def _look_again(self) -> None:
        """Ask Redis again until it answers."""
        while True:
            await asyncio.sleep(LOOK_AGAIN_S)
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._client.ping()
            except (RedisError, OSError):
                continue
            log.info("limits.counted_together")
            self._looking = None
            return


@lru_cache(maxsize=100)
def _spelt(limits: tuple[Limit, ...]) -> str:
    return " ".join(f"{limit.name} {limit.quota} {limit.window_ms} {int(limit.counts_tokens)}" for limit in limits)


def _counts(answer: bytes, limits: Sequence[Limit]) -> list[Count]:
    """The counts in an answer of SCRIPT: now, each window's start, then per charge a flag and the windows."""
    numbers = list(map(int, answer.split()))
    now_ms, starts = numbers[0], numbers[1 : 1 + len(limits)]
    size = 1 + 2 * len(limits)
    counts = []
    for at in range(1 + len(limits), len(numbers), size):
        flag, *held = numbers[at : at + size]
        windows = map(Window, starts, held[::2], held[1::2])
        counts.append(Count(bool(flag), now_ms, tuple(windows)))
    return counts
