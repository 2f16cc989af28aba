"""What follows a failed attempt."""

import pytest

from models.errors import FailureCode, JobFailure
from workers.relay import ids_per_message
from workers.retries import BACKOFF_CAP_S, Fail, FallBack, Retry, backoff_s, decide


def longest(_low: float, high: float) -> float:
    return high


def outcome(code: FailureCode, failures: int, *, fallback: bool, retries: int = 2) -> type:
    decision = decide(JobFailure(code, ""), failures=failures, retries=retries, has_fallback=fallback, uniform=longest)
    return type(decision)


@pytest.mark.parametrize(
    ("code", "failures", "fallback", "expected"),
    [
        (FailureCode.TIMEOUT, 1, True, Retry),
        (FailureCode.TIMEOUT, 2, True, Retry),
        (FailureCode.TIMEOUT, 3, True, FallBack),
        (FailureCode.TIMEOUT, 3, False, Fail),
        (FailureCode.CONNECTION, 1, False, Retry),
        (FailureCode.RATE_LIMITED, 1, True, FallBack),
        (FailureCode.RATE_LIMITED, 1, False, Retry),
        (FailureCode.OVERLOADED, 1, True, FallBack),
        (FailureCode.PROVIDER_AUTH, 1, True, FallBack),
        (FailureCode.PROVIDER_AUTH, 1, False, Fail),
        (FailureCode.PROVIDER_REJECTED, 1, True, Fail),
        (FailureCode.CONTENT_FILTERED, 1, True, Fail),
        (FailureCode.CONTEXT_LENGTH_EXCEEDED, 1, True, FallBack),
        (FailureCode.CONTEXT_LENGTH_EXCEEDED, 1, False, Fail),
        (FailureCode.INTERNAL, 1, False, Fail),
    ],
)
def test_a_failure_is_decided_by_its_code(code: FailureCode, failures: int, fallback: bool, expected: type) -> None:
    assert outcome(code, failures, fallback=fallback) is expected


def test_the_backoff_doubles_up_to_its_cap() -> None:
    waits = [backoff_s(failures, None, longest) for failures in range(1, 12)]
    assert waits[:4] == [1, 2, 4, 8]
    assert waits[-1] == BACKOFF_CAP_S


def test_the_backoff_is_jittered_from_zero() -> None:
    assert backoff_s(3, None, lambda low, _: low) == 0


def test_retry_after_is_the_least_wait() -> None:
    assert backoff_s(1, 12.0, longest) == 12.0


@pytest.mark.parametrize(("largest", "expected"), [(0, 1), (1, 1), (8, 2), (64, 16), (1000, 64)])
def test_a_message_never_takes_more_than_a_quarter_of_a_worker(largest: int, expected: int) -> None:
    assert ids_per_message(largest, 64) == expected
