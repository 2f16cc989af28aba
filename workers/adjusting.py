"""What changes in a job that allows it (``adjust``) on the way to its next attempt: a pure decision.

=================================================  ===============================================================
a context is too small, and no larger LLM is left  ``max_tokens`` times 0.7, rounded down; the same LLM is asked again
a rate limit is reached                            the priority is one lower: high, normal, low
=================================================  ===============================================================

What was changed is kept in the job's request, under ``adjusted``, and shown in each attempt that was made with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.errors import FailureCode, JobFailure

FACTOR_PERCENT = 70
MOST_REDUCTIONS = 10
"""How often ``max_tokens`` is reduced: to a thirty-fifth. A prompt that does not fit then is itself too long."""

NORMAL = 1
_LEVELS = 3
_NAMES = ("high", "normal", "low")

Json = Mapping[str, Any]  # Any: a request as it is stored


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What the further attempts of a job are made with: None where it stays as it is."""

    names: Mapping[str, Any]  # Any: what was changed so far, by name: JSON
    max_tokens: int | None = None
    priority: int | None = None

    def as_stored(self) -> dict[str, Any]:  # Any: JSON
        """The members of the stored request that change."""
        tokens = {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        return {**tokens, "adjusted": dict(self.names)}


def adjust(failure: JobFailure, request: Json, priority: int, *, goes_on: bool) -> Adjustment | None:
    """What to change after a failure; None for nothing. ``goes_on``: the job has another attempt anyway.

    A priority has three levels; those of batches' rows are below all of single jobs.
    """
    if request.get("adjust") is not True:
        return None
    so_far: Json = request.get("adjusted") or {}
    if failure.code is FailureCode.CONTEXT_LENGTH_EXCEEDED and not goes_on:
        times = so_far.get("times", 0) + 1
        fewer = request["max_tokens"] * FACTOR_PERCENT // 100 if "max_tokens" in request else 0
        if fewer < 1 or times > MOST_REDUCTIONS:
            return None
        return Adjustment({**so_far, "max_tokens": fewer, "times": times}, max_tokens=fewer)
    if failure.code is FailureCode.RATE_LIMITED and goes_on and (priority + 1) % _LEVELS:
        lower = priority + 1
        return Adjustment({**so_far, "priority": _NAMES[lower % _LEVELS]}, priority=lower)
    return None


def adjustments_of(request: Json) -> list[str]:
    """The names of what was changed before this attempt, as attempts show them."""
    adjusted: Json = request.get("adjusted") or {}
    return [f"{name} -> {adjusted[name]}" for name in ("max_tokens", "priority") if name in adjusted]
