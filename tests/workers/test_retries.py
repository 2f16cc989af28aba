"""What follows a failed attempt."""

import pytest

from models.errors import FailureCode, JobFailure
from workers.publisher import Message, to_messages
from workers.retries import BACKOFF_CAP_S, Fail, FallBack, Onward, Retry, backoff_s, decide, onward


def longest(_low: float, high: float) -> float:
    return high


NOWHERE = Onward()
SMALLER = Onward(next=1, ready=1)
LARGER = Onward(next=1, ready=1, larger=2)
SHUT = Onward(next=1)


def outcome(code: FailureCode, failures: int, to: Onward) -> Retry | FallBack | Fail:
    return decide(JobFailure(code, ""), failures=failures, retries=2, onward=to, uniform=longest)


@pytest.mark.parametrize(
    ("code", "failures", "to", "expected"),
    [
        (FailureCode.TIMEOUT, 1, SMALLER, Retry(1)),
        (FailureCode.TIMEOUT, 2, SMALLER, Retry(2)),
        (FailureCode.TIMEOUT, 3, SMALLER, FallBack(1)),
        (FailureCode.TIMEOUT, 3, SHUT, FallBack(1)),
        (FailureCode.TIMEOUT, 3, NOWHERE, Fail()),
        (FailureCode.CONNECTION, 1, NOWHERE, Retry(1)),
        (FailureCode.RATE_LIMITED, 1, SMALLER, FallBack(1)),
        (FailureCode.RATE_LIMITED, 1, SHUT, Retry(1)),
        (FailureCode.RATE_LIMITED, 1, NOWHERE, Retry(1)),
        (FailureCode.OVERLOADED, 1, SMALLER, FallBack(1)),
        (FailureCode.PROVIDER_AUTH, 1, SMALLER, FallBack(1)),
        (FailureCode.PROVIDER_AUTH, 1, NOWHERE, Fail()),
        (FailureCode.PROVIDER_REJECTED, 1, LARGER, Fail()),
        (FailureCode.CONTENT_FILTERED, 1, LARGER, Fail()),
        (FailureCode.CONTEXT_LENGTH_EXCEEDED, 1, LARGER, FallBack(2)),
        (FailureCode.CONTEXT_LENGTH_EXCEEDED, 1, SMALLER, Fail()),
        (FailureCode.INTERNAL, 1, NOWHERE, Fail()),
    ],
)
def test_a_failure_is_decided_by_its_code(
    code: FailureCode, failures: int, to: Onward, expected: Retry | FallBack | Fail
) -> None:
    assert outcome(code, failures, to) == expected


@pytest.mark.parametrize(
    ("index", "windows", "is_open", "expected"),
    [
        (0, [10, 10, 20], [True, False, False], Onward(next=1, ready=1, larger=2)),
        (0, [10, 10, 20], [False, True, False], Onward(next=1, ready=2, larger=2)),
        (1, [30, 20, 10], [False, False, True], Onward(next=2)),
        (0, [10], [False], Onward()),
    ],
)
def test_a_route_is_looked_along(index: int, windows: list[int], is_open: list[bool], expected: Onward) -> None:
    assert onward(index, windows, is_open) == expected


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
    messages = to_messages([str(n) for n in range(1000)], largest, 64, rows=False)
    assert max(len(message.ids) for message in messages) == expected
    assert [job_id for message in messages for job_id in message.ids] == [str(n) for n in range(1000)]


def test_rows_of_batches_go_in_larger_messages() -> None:
    expected = [Message(["row 1", "row 2"], rows=True), Message(["row 3"], rows=True)]
    assert to_messages(["row 1", "row 2", "row 3"], 4, 64, rows=True) == expected
