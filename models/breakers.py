"""The circuit breakers that all processes share: one hash per LLM in Redis, under the rules of :mod:`models.circuit`.

The clock is the server's, so that processes with clocks of their own agree. A breaker that nobody asks for expires.
"""

from models.catalog import BreakerConfig
from models.circuit import FAILURE_POINTS, NEXT_LOOK_MS, SLOTS, CircuitRules, CircuitState, Look
from models.shared import Shared

_PREFIX = "headrace:breaker:"

BREAKER = f"""
local key, op, token, calls, points = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local slot_ms, min_calls, error_rate = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local cooldown, max_cooldown, needed = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local lease, ttl, now = tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
if not now then
    local clock = redis.call('TIME')
    now = clock[1] * 1000 + math.floor(clock[2] / 1000)
end
local flat, h = redis.call('HGETALL', key), {{}}
for i = 1, #flat, 2 do h[flat[i]] = flat[i + 1] end
local state, probe = h.state or 'closed', h.probe or ''
local function number(name) return tonumber(h[name] or 0) end
local function put(...)
    redis.call('HSET', key, ...)
    redis.call('PEXPIRE', key, ttl)
    local changed = {{...}}
    for i = 1, #changed, 2 do h[changed[i]] = changed[i + 1] end
    state, probe = h.state or 'closed', h.probe or ''
end
local function counted()
    local oldest, all_calls, all_points = math.floor(now / slot_ms) - {SLOTS}, 0, 0
    for i = 0, {SLOTS - 1} do
        if number('slot' .. i) > oldest then
            all_calls, all_points = all_calls + number('calls' .. i), all_points + number('points' .. i)
        end
    end
    return all_calls, all_points
end
local function clear()
    for i = 0, {SLOTS - 1} do redis.call('HDEL', key, 'slot' .. i, 'calls' .. i, 'points' .. i) end
end
local function trip()
    local trips = number('trips') + 1
    clear()
    put('state', 'open', 'trips', trips, 'until', now + math.min(max_cooldown, cooldown * 2 ^ math.min(trips - 1, 30)))
end
local function look()
    if state == 'closed' then
        local _, all_points = counted()
        return {{state, 1, 0, 0, all_points == 0 and 1 or 0}}
    elseif state == 'open' then
        return {{state, 0, 0, number('until') - now, 0}}
    end
    local taken = probe ~= '' and number('probe_until') - now or 0
    return {{state, 0, 0, math.max(0, math.min(taken, {NEXT_LOOK_MS})), 0}}
end

if state == 'open' and now >= number('until') then
    if op == 'peek' then
        state, probe = 'half_open', ''
    else
        put('state', 'half_open', 'successes', 0, 'probe', '')
    end
end
if op == 'admit' and state == 'half_open' and (probe == '' or now >= number('probe_until')) then
    put('probe', token, 'probe_until', now + lease)
    return {{state, 1, 1, 0, 0}}
elseif op == 'renew' and probe == token then
    put('probe_until', now + lease)
elseif op == 'record' and state == 'closed' then
    local slot = math.floor(now / slot_ms)
    local place = slot % {SLOTS}
    if number('slot' .. place) ~= slot then
        put('slot' .. place, slot, 'calls' .. place, 0, 'points' .. place, 0)
    end
    put('calls' .. place, number('calls' .. place) + calls, 'points' .. place, number('points' .. place) + points)
    local all_calls, all_points = counted()
    if points > 0 and all_calls >= min_calls and all_points >= error_rate * {FAILURE_POINTS} * all_calls then trip() end
elseif op == 'record' and state == 'half_open' and token ~= '' and token == probe then
    put('probe', '')
    if points > 0 then
        trip()
    elseif calls > 0 then
        put('successes', number('successes') + 1)
        if number('successes') >= needed then put('state', 'closed', 'trips', 0) end
    end
end
return look()
"""
"""Ask a breaker (``admit``, ``peek``, ``renew``, ``record``): arguments as below; returns what a Look holds."""


def rules_of(config: BreakerConfig) -> CircuitRules:
    """The catalogue's numbers in milliseconds."""
    return CircuitRules(
        window_ms=_ms(config.window_s),
        min_calls=config.min_calls,
        error_rate=config.error_rate,
        cooldown_ms=_ms(config.cooldown_s),
        max_cooldown_ms=_ms(config.max_cooldown_s),
        successes=config.successes,
        probe_lease_ms=_ms(config.probe_lease_s),
    )


class SharedBreakers:
    """The breakers of a catalogue's LLMs in Redis; every method raises SharedAway when it is away."""

    def __init__(self, shared: Shared, rules: CircuitRules) -> None:
        self._shared = shared
        self._rules = rules
        ttl_ms = 2 * (rules.window_ms + rules.max_cooldown_ms + rules.probe_lease_ms)
        self._numbers = (
            *(rules.slot_ms, rules.min_calls, rules.error_rate, rules.cooldown_ms, rules.max_cooldown_ms),
            *(rules.successes, rules.probe_lease_ms, ttl_ms),
        )

    async def peek(self, llm: str) -> Look:
        """A breaker's state; changes nothing."""
        return await self._ask(llm, "peek")

    async def admit(self, llm: str, token: str) -> Look:
        """Ask to make a call; ``token`` names the probe that it may become."""
        return await self._ask(llm, "admit", token)

    async def renew(self, llm: str, token: str) -> Look:
        """Keep the lease of a probe that is still under way."""
        return await self._ask(llm, "renew", token)

    async def record(self, llm: str, token: str, calls: int, points: int) -> Look:
        """Count calls that ended, or end a probe by its token; no calls at all give its lease back."""
        return await self._ask(llm, "record", token, calls, points)

    async def _ask(
        self, llm: str, operation: str, token: str = "", calls: int = 0, points: int = 0, now: int | None = None
    ) -> Look:
        reply = await self._shared.run(
            BREAKER, f"{_PREFIX}{llm}", operation, token, calls, points, *self._numbers, "" if now is None else now
        )
        state, passes, probe, wait_ms, spotless = reply
        return Look(CircuitState(state.decode()), bool(passes), bool(probe), int(wait_ms), bool(spotless))


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
