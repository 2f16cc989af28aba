"""Rate limits of an API key, by its plan: what a submission takes, and what the caller is told.

A key without a plan has no limits and costs nothing here. The headers are those of the IETF's draft
(draft-ietf-httpapi-ratelimit-headers): ``RateLimit-Policy`` names the limits, ``RateLimit`` says what is left
of each (``r``) and in how many seconds its window ends, or else has room again (``t``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from api.auth import Caller
from api.counters import Charge, Count, Counters
from api.submission import Submitted, Submitter
from models.database import dump_json
from models.errors import RateLimited
from models.plans import SMALLEST, Limit, Plan, Window
from models.tokens import most_tokens

Headers = Mapping[str, str]
_NONE: Headers = {}


@dataclass(frozen=True, slots=True)
class Grant:
    """A submission that is within its key's limits, and what its answer says of them."""

    charge: Charge
    headers: Headers


class RateLimiter:
    """Admits submissions by the plans of the catalogue."""

    def __init__(self, plans: Mapping[str, Plan], counters: Counters) -> None:
        self._plans = plans
        self._counters = counters

    async def admit(self, caller: Caller, tokens: int) -> Grant:
        """Charge one request of so many tokens to a key that has a plan; raises RateLimited."""
        name = self._name_of(caller.plan)
        return await self._take(name, Charge(caller.api_key_id.hex, self._plans[name].limits, tokens))

    async def admit_one(self, caller: Caller) -> Headers:
        """Charge a request that makes no job by itself to a key, if it has a plan; what its answer says of the limits.
        Raises RateLimited."""
        return _NONE if caller.plan is None else (await self.admit(caller, 0)).headers

    async def admit_rows(self, plan: str | None, api_key_id: UUID | None, rows: int, tokens: int) -> Grant | None:
        """Charge the rows of a batch to the key that made it, if that has a plan; raises RateLimited."""
        if plan is None or api_key_id is None:
            return None
        name = self._name_of(plan)
        return await self._take(name, Charge(api_key_id.hex, self._plans[name].batch_limits, tokens, rows))

    def plan(self, name: str | None) -> Plan | None:
        """What a key of this plan may do; None for a key without one."""
        return None if name is None else self._plans[self._name_of(name)]

    async def give_back(self, grant: Grant) -> None:
        """Return the tokens of a submission that made no job; it still counts as a request."""
        charge = grant.charge
        if any(limit.counts_tokens for limit in charge.limits):
            await self._counters.count(Charge(charge.subject, charge.limits, -charge.tokens))

    async def give_back_rows(self, grant: Grant | None) -> None:
        """Return all that a batch took that came to nothing."""
        if grant is not None and grant.charge.limits:
            charge = grant.charge
            await self._counters.count(Charge(charge.subject, charge.limits, -charge.tokens, -charge.requests))

    def _name_of(self, plan: str | None) -> str:
        return plan if plan and plan in self._plans else SMALLEST

    async def _take(self, name: str, charge: Charge) -> Grant:
        if not charge.limits:
            return Grant(charge, _NONE)
        count = await self._counters.count(charge)
        if not count.accepted:
            raise _refusal(name, charge, count)
        return Grant(charge, _headers(charge, count))


async def submit_within_limits(
    limiter: RateLimiter,
    submitter: Submitter,
    caller: Caller,
    job: Mapping[str, Any],  # Any: see plan_job
) -> tuple[Submitted, Headers]:
    """Record a planned job if its key's plan admits it; what was recorded, and the headers of the limits."""
    if caller.plan is None:
        return await submitter.submit(job), _NONE
    grant = await limiter.admit(caller, worst_tokens(job["request"]))
    made = False
    try:
        submitted = await submitter.submit(job)
        made = submitted.created
    finally:
        if not made:
            await limiter.give_back(grant)
    return submitted, grant.headers


def worst_tokens(request: Mapping[str, Any]) -> int:  # Any: JSON
    """The most tokens that a job's request may use, prompt and answer together."""
    if "input" in request:
        return most_tokens(request["input"])
    texts = [message["content"] for message in request["messages"]]
    if "response_format" in request:
        texts.append(dump_json(request["response_format"]))
    return most_tokens(texts) + int(request["max_tokens"])


def _headers(charge: Charge, count: Count) -> dict[str, str]:
    limits = charge.limits
    left = [_left(window, count.now_ms, limit) for window, limit in zip(count.windows, limits, strict=True)]
    return {
        "ratelimit-policy": ", ".join(
            f'"{limit.name}";q={limit.quota};w={limit.window_ms // 1000}' for limit in limits
        ),
        "ratelimit": ", ".join(left),
    }


def _left(window: Window, now_ms: int, limit: Limit) -> str:
    left = window.left(now_ms, limit)
    until_ms = window.start_ms + limit.window_ms - now_ms if left else window.wait_ms(1, now_ms, limit)
    return f'"{limit.name}";r={left};t={_seconds(until_ms)}'


def _refusal(plan: str, charge: Charge, count: Count) -> RateLimited:
    """The refusal, by the limit that has room last."""
    waits = {
        limit: window.wait_ms(limit.cost(charge.tokens, charge.requests), count.now_ms, limit)
        for window, limit in zip(count.windows, charge.limits, strict=True)
    }
    never = [limit for limit in charge.limits if limit.cost(charge.tokens, charge.requests) > limit.quota]
    limit = never[0] if never else max(waits, key=waits.__getitem__)
    retry_after_s = _seconds(waits[limit])
    allowed = f"The plan {plan!r} of this API key allows {limit.quota:,} {limit.name.replace('-', ' ')}"
    subject = "request" if charge.requests == 1 else f"batch of {charge.requests:,} rows"
    asked = f", and this {subject} may use {charge.tokens:,}" if limit.counts_tokens else ""
    if charge.requests > 1 and not limit.counts_tokens:
        asked = f", and this batch has {charge.requests:,} rows"
    shorter = "shorten it or lower max_tokens" if charge.requests == 1 else "send fewer rows"
    advice = shorter if never else f"try again in {retry_after_s} s"
    headers = _headers(charge, count) | ({"x-should-retry": "false"} if never else {})
    return RateLimited(f"{allowed}{asked}: {advice}.", retry_after_s=retry_after_s, headers=headers)


def _seconds(ms: int) -> int:
    return max(1, -(-ms // 1000))
