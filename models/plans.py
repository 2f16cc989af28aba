"""Plans: how much an API key may submit, and the sliding window that counts it.

A plan has limits for what is submitted one at a time (requests per minute, tokens per minute, requests per day) and
for batches and files, each of them optional. The rows of a batch do not come by the minute: they are charged by the day
(:attr:`Plan.batch_limits`), so that no plan with limits is without one for batches.

What was used lately is estimated from two adjoining windows, as a sliding window counter does: all of the
current one, and of the one before it the share that still lies within a window's length of now. The rule is
the same wherever the counters are kept: in Redis (:mod:`api.ratelimits` says it in Lua) or in a process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

MINUTE_S = 60
DAY_S = 86_400

Quota = Annotated[int, Field(ge=1, le=10**9)]
PlanName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``quota`` requests (or rows of batches), or tokens, in ``window_ms`` milliseconds."""

    name: str
    quota: int
    window_ms: int
    counts_tokens: bool = False

    def cost(self, tokens: int, requests: int = 1) -> int:
        """What requests with so many tokens together take from this limit; negative numbers give back, and where tokens
        are given back no request is taken."""
        if self.counts_tokens:
            return tokens
        return requests if tokens >= 0 else min(0, requests)


class Plan(BaseModel):
    """What an API key of this plan may submit; a limit that is left out does not exist."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_minute: Quota | None = None
    tokens_per_minute: Quota | None = None
    requests_per_day: Quota | None = None
    batch_rows_per_day: Quota | None = None
    batch_tokens_per_day: Annotated[int, Field(ge=1, le=10**12)] | None = None
    batch_rows: Quota | None = None
    files: Quota | None = None
    file_bytes: Annotated[int, Field(ge=1, le=10**15)] | None = None
    files_expire_after_s: Annotated[int, Field(ge=3600, le=365 * DAY_S)] | None = None

    @cached_property
    def batch_limits(self) -> tuple[Limit, ...]:
        """The limits that the rows of batches take from.

        A row is a request of the day where the plan has no limit of its own for rows; where it has limits by the minute
        alone, a day of them.
        """
        day_ms = DAY_S * 1000
        limits = []
        if self.batch_rows_per_day is None and self.requests_per_day is not None:
            limits.append(Limit("requests-per-day", self.requests_per_day, day_ms))
        elif rows := self.batch_rows_per_day or _day_of(self.requests_per_minute):
            limits.append(Limit("batch-rows-per-day", rows, day_ms))
        if tokens := self.batch_tokens_per_day or _day_of(self.tokens_per_minute):
            limits.append(Limit("batch-tokens-per-day", tokens, day_ms, counts_tokens=True))
        return tuple(limits)

    @cached_property
    def most_rows(self) -> int | None:
        """The most rows that a batch of this plan can ever have."""
        limits = [limit.quota for limit in self.batch_limits if not limit.counts_tokens]
        return min([*limits, *filter(None, [self.batch_rows])], default=None)

    @cached_property
    def limits(self) -> tuple[Limit, ...]:
        """The limits that this plan has."""
        possible = (
            ("requests-per-minute", self.requests_per_minute, MINUTE_S, False),
            ("tokens-per-minute", self.tokens_per_minute, MINUTE_S, True),
            ("requests-per-day", self.requests_per_day, DAY_S, False),
        )
        return tuple(Limit(name, quota, window_s * 1000, tokens) for name, quota, window_s, tokens in possible if quota)


def _day_of(per_minute: int | None) -> int | None:
    return None if per_minute is None else per_minute * (DAY_S // MINUTE_S)


def _plan(
    requests_per_minute: int,
    tokens_per_minute: int,
    requests_per_day: int,
    *,
    rows: int | None,
    files: int,
    file_bytes: int,
) -> Plan:
    return Plan(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        requests_per_day=requests_per_day,
        batch_rows_per_day=rows,
        files=files,
        file_bytes=file_bytes,
    )


SMALLEST = "free"
"""The plan of a key whose own plan has been taken out of the catalogue."""

SHIPPED_PLANS: Mapping[str, Plan] = {
    SMALLEST: _plan(10, 10_000, 100, rows=None, files=100, file_bytes=100 * 10**6),
    "pro": _plan(100, 100_000, 1_000, rows=100_000, files=1_000, file_bytes=10 * 10**9),
    "enterprise": _plan(1_000, 1_000_000, 10_000, rows=5_000_000, files=10_000, file_bytes=100 * 10**9),
}


def _beside_the_shipped(plans: dict[str, Plan]) -> dict[str, Plan]:
    return {**SHIPPED_PLANS, **plans}


Plans = Annotated[
    dict[PlanName, Plan],
    Field(default_factory=dict, validate_default=True),
    AfterValidator(_beside_the_shipped),
]
"""The catalogue's ``[plans.<name>]`` tables: each adds a plan, or takes the place of a shipped one."""


@dataclass(frozen=True, slots=True)
class Window:
    """What one limit counted: ``used`` since ``start_ms``, and ``before`` in the window before that."""

    start_ms: int
    used: int = 0
    before: int = 0

    def at(self, now_ms: int, limit: Limit) -> Self:
        """The window as it has moved on; windows begin with the first request after a pause."""
        elapsed = now_ms - self.start_ms
        if elapsed < 0 or elapsed >= 2 * limit.window_ms:
            keep = (self.used, self.before) if elapsed < 0 else (0, 0)  # a clock that was set back
            return type(self)(now_ms, *keep)
        if elapsed >= limit.window_ms:
            return type(self)(self.start_ms + limit.window_ms, 0, self.used)
        return self

    def fits(self, cost: int, now_ms: int, limit: Limit) -> bool:
        """Whether so much more is within the quota."""
        return self._counted(now_ms, limit) + cost * limit.window_ms <= limit.quota * limit.window_ms

    def left(self, now_ms: int, limit: Limit) -> int:
        """How much of the quota is left, in whole units."""
        return max(0, (limit.quota * limit.window_ms - self._counted(now_ms, limit)) // limit.window_ms)

    def wait_ms(self, cost: int, now_ms: int, limit: Limit) -> int:
        """Milliseconds until so much more fits, if nothing else is used; a window's length when it never does."""
        if self.fits(cost, now_ms, limit):
            return 0
        if cost > limit.quota:
            return limit.window_ms
        since = now_ms - self.start_ms
        if self.used + cost <= limit.quota:
            return _fades_at(self.before, limit.quota - self.used - cost, limit) - since
        return limit.window_ms - since + _fades_at(self.used, limit.quota - cost, limit)

    def plus(self, cost: int) -> Self:
        """The window with so much more used; with less, for a negative cost, but never below nothing."""
        used = self.used + cost
        return type(self)(self.start_ms, max(0, used), max(0, self.before + min(0, used)))

    def _counted(self, now_ms: int, limit: Limit) -> int:
        """What is used now, times the window's milliseconds: whole numbers, so that every counter agrees."""
        return self.before * (limit.window_ms - (now_ms - self.start_ms)) + self.used * limit.window_ms


def charge(
    windows: Sequence[Window], tokens: int, now_ms: int, limits: Sequence[Limit], requests: int = 1
) -> tuple[bool, tuple[Window, ...]]:
    """Whether a request is within all the limits, and their windows afterwards: it takes from all or from none.

    Negative numbers of tokens or requests are given back, whatever the limits say.
    """
    current = [window.at(now_ms, limit) for window, limit in zip(windows, limits, strict=True)]
    pairs = list(zip(current, limits, strict=True))
    costs = [limit.cost(tokens, requests) for limit in limits]
    takes = tokens >= 0 and requests >= 0
    if takes and not all(window.fits(cost, now_ms, limit) for (window, limit), cost in zip(pairs, costs, strict=True)):
        return False, tuple(current)
    return True, tuple(window.plus(cost) for window, cost in zip(current, costs, strict=True))


def _fades_at(before: int, room: int, limit: Limit) -> int:
    """Milliseconds into a window at which what was used before it weighs at most ``room``."""
    return max(0, limit.window_ms - room * limit.window_ms // before)
