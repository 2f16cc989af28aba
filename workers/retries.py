"""What to do about a failed attempt: a pure decision."""

from collections.abc import Callable
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
class Retry:
    """Ask the same LLM again after ``delay_s``."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class FallBack:
    """Ask the next LLM of the route now."""


@dataclass(frozen=True, slots=True)
class Fail:
    """Give up."""


def decide(
    failure: JobFailure,
    *,
    failures: int,
    retries: int,
    has_fallback: bool,
    uniform: Callable[[float, float], float],
) -> Retry | FallBack | Fail:
    """What follows a failure.

    ``failures`` counts those on this LLM, this one included; ``retries`` is how often it may be asked again.
    """
    if failure.code in _FINAL:
        return Fail()
    if has_fallback and failure.code in _FALL_BACK_AT_ONCE:
        return FallBack()
    if failure.retryable and failures <= retries:
        return Retry(backoff_s(failures, failure.retry_after_s, uniform))
    return FallBack() if has_fallback else Fail()


def backoff_s(failures: int, retry_after_s: float | None, uniform: Callable[[float, float], float]) -> float:
    """Seconds to wait: exponential with full jitter up to 30 s, and never less than ``Retry-After``.

    Source: M. Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
    """
    ceiling = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2 ** min(failures, 16))
    return max(uniform(0.0, ceiling), retry_after_s or 0.0)
