"""How long a provider asks to wait: vectorize-io/hindsight#3508, dirge-code/dirge#719, CortexLM/cortex-code#407,
cloudfoundry/cloud_controller_ng#2544, NikkeTryHard/zerogravity#19."""

from time import gmtime, strftime, time, tzset

import pytest

from workers.providers.complaints import Complaint
from workers.providers.waits import MAX_WAIT_S, retry_after


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "2"}, 2),
        ({"retry-after": "1m30s"}, 90),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"x-ms-retry-after-ms": "250"}, 0.25),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s"}, 360),
        ({"x-ratelimit-reset-tokens": "20ms", "x-ratelimit-remaining-tokens": "0"}, 0.02),
        ({"x-ratelimit-reset-tokens": "20ms", "x-ratelimit-remaining-tokens": "7"}, None),
        (
            {
                "x-ratelimit-reset-requests": "1h0m0s",
                "x-ratelimit-remaining-requests": "9",
                "x-ratelimit-reset-tokens": "2m59.56s",
                "x-ratelimit-remaining-tokens": "0",
            },
            179.56,
        ),
        ({"x-ratelimit-reset": "42"}, 42),
        ({"retry-after": "1", "x-ratelimit-reset-tokens": "6m0s"}, 1),
        ({"anthropic-ratelimit-requests-reset": "2001-01-01T00:00:00Z"}, 0),
        ({"x-ratelimit-reset-tokens": "later"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "10 seconds"}, 10),
        ({"retry-after": "30 s"}, 30),
        ({"retry-after": "45sec"}, 45),
    ],
)
def test_headers(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("date", ["%Y-%m-%dT%H:%M:%S", "%a, %d %b %Y %H:%M:%S -0000"])
def test_a_date_without_a_zone_is_utc_wherever_the_worker_runs(date: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    tzset()
    try:
        wait_s = retry_after({"retry-after": strftime(date, gmtime(time() + 60))})
    finally:
        monkeypatch.undo()
        tzset()
    assert wait_s is not None
    assert 50 < wait_s <= 60


@pytest.mark.parametrize("form", ["seconds", "milliseconds"])
def test_a_moment_is_no_number_of_seconds(form: str) -> None:
    """Some servers write the moment of the reset, since 1970, where a number of seconds is meant."""
    moment = time() + 30
    text = f"{moment:.0f}" if form == "seconds" else f"{moment * 1000:.0f}"
    wait_s = retry_after({"retry-after": text})
    assert wait_s is not None
    assert 0 < wait_s <= 31


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Rate limit reached. Please try again in 7m12s. Visit ...", 432),
        ("Please try again in 6ms.", 0.006),
        ("Please retry after 20 seconds.", 20),
        ("Please retry in 34.07s.", 34.07),
        ("Please wait 37 seconds before retrying.", 37),
        ("Wait for 2 min.", 120),
        ("Try again in 5 mins", 300),
        ("Too many requests; available in 12 secs", 12),
        ("Try again in about 2 minutes", 120),
        ("Please try again in 30 days", None),
        ("try again in a moment", None),
        ("try again later", None),
        ("try again in " + "9" * 5000 + "s", None),
    ],
)
def test_sentences(message: str, seconds: float | None) -> None:
    wait_s = retry_after({}, Complaint((), 429, message))
    assert wait_s == (None if seconds is None else pytest.approx(seconds))


def test_no_wait_is_longer_than_a_day() -> None:
    assert retry_after({}, Complaint((), 429, "", wait="999999s")) == MAX_WAIT_S
