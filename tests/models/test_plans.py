"""Plans and the sliding window, as pure rules."""

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from models.catalog import load_catalog
from models.errors import ConfigurationError
from models.plans import SHIPPED_PLANS, Limit, Plan, Window, charge

LLM = """
[tiers.small]
queue = "small"
pool = "cpu"
[llms.a]
tier = "small"
provider = "mock"
context_window = 10
input_price = "0"
output_price = "0"
"""
TEN = Limit("requests-per-minute", 10, 60_000)

quotas = st.integers(1, 2000)
windows = st.builds(Window, st.just(0), st.integers(0, 2500), st.integers(0, 2500))


def plans_of(tmp_path: Path, tables: str) -> dict[str, Plan]:
    path = tmp_path / "catalog.toml"
    path.write_text(LLM + tables)
    return load_catalog(path).plans


def test_three_plans_are_shipped() -> None:
    numbers = {
        name: (plan.requests_per_minute, plan.tokens_per_minute, plan.requests_per_day)
        for name, plan in load_catalog().plans.items()
    }
    assert numbers == {
        "free": (10, 10_000, 100),
        "pro": (100, 100_000, 1_000),
        "enterprise": (1_000, 1_000_000, 10_000),
    }


def test_a_table_of_the_catalogue_takes_the_place_of_a_shipped_plan_or_adds_one(tmp_path: Path) -> None:
    plans = plans_of(tmp_path, "[plans.pro]\nrequests_per_minute = 7\n[plans.partner]\n")
    assert plans["pro"] == Plan(requests_per_minute=7)
    assert [limit.name for limit in plans["pro"].limits] == ["requests-per-minute"]
    assert plans["partner"].limits == ()
    assert plans["free"] == SHIPPED_PLANS["free"]


@pytest.mark.parametrize("table", ["[plans.x]\nrequests = 1", "[plans.x]\nrequests_per_day = 0", "[plans.'a b']"])
def test_a_wrong_plan_stops_a_process_at_its_start(tmp_path: Path, table: str) -> None:
    with pytest.raises(ConfigurationError, match="plans"):
        plans_of(tmp_path, table)


def test_what_was_used_before_fades_while_the_window_slides() -> None:
    window = Window(0, used=10)
    assert [window.at(now, TEN).left(now, TEN) for now in (0, 59_999, 60_000, 90_000, 119_999)] == [0, 0, 0, 5, 9]
    assert window.at(120_000, TEN) == Window(120_000)


def test_a_clock_that_is_set_back_forgets_nothing_and_stops_nothing() -> None:
    window = Window(1_000_000, used=4, before=3)
    assert window.at(5_000, TEN) == Window(5_000, used=4, before=3)


@given(windows, quotas, st.integers(1, 2000), st.integers(0, 119_999))
def test_a_request_fits_after_its_wait_and_not_a_millisecond_sooner(
    window: Window, quota: int, cost: int, now: int
) -> None:
    limit = Limit("x", quota, 60_000)
    current = window.at(now, limit)
    assume(cost <= quota)
    wait = current.wait_ms(cost, now, limit)
    assert current.at(now + wait, limit).fits(cost, now + wait, limit)
    if wait:
        assert not current.at(now + wait - 1, limit).fits(cost, now + wait - 1, limit)


@given(windows, quotas, st.integers(0, 119_999))
def test_exactly_what_is_left_fits(window: Window, quota: int, now: int) -> None:
    limit = Limit("x", quota, 60_000)
    current = window.at(now, limit)
    left = current.left(now, limit)
    assert left == 0 or current.fits(left, now, limit)
    assert not current.fits(left + 1, now, limit)


def test_a_request_takes_from_all_limits_or_from_none() -> None:
    limits = SHIPPED_PLANS["free"].limits
    fresh = [Window(0)] * 3
    accepted, windows = charge(fresh, 9_999, 0, limits)
    assert (accepted, [window.used for window in windows]) == (True, [1, 9_999, 1])
    accepted, windows = charge(windows, 2, 0, limits)
    assert (accepted, [window.used for window in windows]) == (False, [1, 9_999, 1])


def test_tokens_are_given_back_whatever_the_limits_say_and_requests_are_not() -> None:
    limits = SHIPPED_PLANS["free"].limits
    full = [Window(0, 10, 3), Window(0, 10_000, 500), Window(0, 100)]
    accepted, windows = charge(full, -10_200, 0, limits)
    assert (accepted, windows) == (True, (Window(0, 10, 3), Window(0, 0, 300), Window(0, 100)))
