"""What changes in a job that allows it on the way to its next attempt."""

from typing import Any

import pytest

from models.errors import FailureCode, JobFailure
from workers.adjusting import MOST_REDUCTIONS, Adjustment, adjust, adjustments_of

TOO_LONG = JobFailure(FailureCode.CONTEXT_LENGTH_EXCEEDED, "")
LIMITED = JobFailure(FailureCode.RATE_LIMITED, "")
Json = dict[str, Any]  # Any: a stored request


def after(request: Json, adjustment: Adjustment) -> Json:
    """The request as the report's statement leaves it."""
    return request | adjustment.as_stored()


def test_max_tokens_sinks_by_seven_tenths_rounded_down_until_nothing_is_left() -> None:
    request: Json = {"max_tokens": 10, "adjust": True}
    seen = []
    while (adjustment := adjust(TOO_LONG, request, 1, goes_on=False)) is not None:
        request = after(request, adjustment)
        seen.append(request["max_tokens"])
        assert adjustments_of(request) == [f"max_tokens -> {request['max_tokens']}"]
    assert seen == [7, 4, 2, 1]


def test_max_tokens_sinks_a_bounded_number_of_times() -> None:
    request: Json = {"max_tokens": 2**31 - 1, "adjust": True}
    for _ in range(MOST_REDUCTIONS):
        adjustment = adjust(TOO_LONG, request, 1, goes_on=False)
        assert adjustment is not None
        request = after(request, adjustment)
    assert adjust(TOO_LONG, request, 1, goes_on=False) is None


def test_seven_tenths_are_exact_whatever_the_number() -> None:
    adjustment = adjust(TOO_LONG, {"max_tokens": 30, "adjust": True}, 1, goes_on=False)
    assert adjustment is not None
    assert adjustment.max_tokens == 21  # 30 * 0.7 is 20.999999999999996 in floating point


@pytest.mark.parametrize(
    ("priority", "lower", "name"),
    [(0, 1, "normal"), (1, 2, "low"), (2, None, ""), (3, 4, "normal"), (4, 5, "low"), (5, None, "")],
)
def test_priority_sinks_by_one_and_a_rows_stays_a_rows(priority: int, lower: int | None, name: str) -> None:
    request: Json = {"max_tokens": 10, "adjust": True}
    adjustment = adjust(LIMITED, request, priority, goes_on=True)
    assert (adjustment and adjustment.priority) == lower
    if adjustment is not None:
        assert adjustments_of(after(request, adjustment)) == [f"priority -> {name}"]
        assert after(request, adjustment)["max_tokens"] == 10


def test_changes_add_up() -> None:
    request: Json = {"max_tokens": 100, "adjust": True}
    for failure, goes_on in ((LIMITED, True), (TOO_LONG, False), (TOO_LONG, False)):
        adjustment = adjust(failure, request, 0, goes_on=goes_on)
        assert adjustment is not None
        request = after(request, adjustment)
    assert adjustments_of(request) == ["max_tokens -> 49", "priority -> normal"]


@pytest.mark.parametrize(
    ("failure", "request_", "goes_on"),
    [
        (TOO_LONG, {"max_tokens": 10}, False),
        (TOO_LONG, {"max_tokens": 10, "adjust": False}, False),
        (TOO_LONG, {"max_tokens": 10, "adjust": True}, True),  # a larger LLM is left
        (TOO_LONG, {"max_tokens": 1, "adjust": True}, False),
        (TOO_LONG, {"input": ["x"], "adjust": True}, False),
        (LIMITED, {"max_tokens": 10}, True),
        (LIMITED, {"max_tokens": 10, "adjust": True}, False),  # the job ends
        (JobFailure(FailureCode.TIMEOUT, ""), {"max_tokens": 10, "adjust": True}, True),
        (JobFailure(FailureCode.PROVIDER_REJECTED, ""), {"max_tokens": 10, "adjust": True}, False),
    ],
)
def test_nothing_else_changes(failure: JobFailure, request_: Json, goes_on: bool) -> None:
    assert adjust(failure, request_, 1, goes_on=goes_on) is None
