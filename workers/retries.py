"""What to do about a failed attempt: a pure decision."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from models.errors import FailureCode, JobFailure

BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 30.0

_FALL_BACK_AT_ONCE = frozenset(
    {FailureCode.RATE_LIMITED, FailureCode.OVERLOADED, FailureCode.CIRCUIT_OPEN, FailureCode.PROVIDER_AUTH}
)
"""Waiting for the same LLM is worse than asking another one now."""

_FINAL = frozenset({FailureCode.PROVIDER_REJECTED, FailureCode.CONTENT_FILTERED})
"""The request itself was refused: no other LLM is asked."""


@dataclass(frozen=True, slots=True)
class Onward:
    """Where a job can go from its LLM, as places in its route; None where there is no such LLM."""

    next: int | None = None
    """The next LLM, whatever its state."""

    ready: int | None = None
    """The next LLM whose circuit breaker is closed."""

    larger: int | None = None
    """The next LLM with a larger context window."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Ask the same LLM again after ``delay_s``."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class FallBack:
    """Ask the LLM at this place of the route now."""

    index: int


@dataclass(frozen=True, slots=True)
class Fail:
    """Give up."""


def onward(index: int, windows: Sequence[int], is_open: Iterable[bool]) -> Onward:
    """Where a job at ``index`` of its route can go, by the context window and the breaker of each LLM there."""
    places = [(place, window, shut) for place, (window, shut) in enumerate(zip(windows, is_open, strict=True))]
    later = places[index + 1 :]
    return Onward(
        next=next((place for place, _, _ in later), None),
        ready=next((place for place, _, shut in later if not shut), None),
        larger=next((place for place, window, _ in later if window > windows[index]), None),
    )


def decide(
    failure: JobFailure,
    *,
    failures: int,
    retries: int,
    onward: Onward,
    uniform: Callable[[float, float], float],
) -> Retry | FallBack | Fail:
    """What follows a failure.

    ``failures`` counts those on this LLM, this one included; ``retries`` is how often it may be asked again.
    """
    if failure.code in _FINAL:
        return Fail()
    if failure.code is FailureCode.CONTEXT_LENGTH_EXCEEDED:
        return _fall_back(onward.larger)
    if failure.code in _FALL_BACK_AT_ONCE and onward.ready is not None:
        return FallBack(onward.ready)
    if failure.retryable and failures <= retries:
        return Retry(backoff_s(failures, failure.retry_after_s, uniform))
    return _fall_back(onward.next if onward.ready is None else onward.ready)


def backoff_s(failures: int, retry_after_s: float | None, uniform: Callable[[float, float], float]) -> float:
    """Seconds to wait: exponential with full jitter up to 30 s, and never less than ``Retry-After``.

    Source: M. Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
    """
    ceiling = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2 ** min(failures, 16))
    return max(uniform(0.0, ceiling), retry_after_s or 0.0)


def _fall_back(place: int | None) -> FallBack | Fail:
    return Fail() if place is None else FallBack(place)
