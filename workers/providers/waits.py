"""How long a provider asks to wait, in every form in use.

The first of these that an answer has: ``retry-after-ms``, ``x-ms-retry-after-ms``, ``Retry-After`` (seconds, a date,
seconds since 1970), the body (Google's ``retryDelay``, ``retry_after``, Hugging Face's ``estimated_time``), the
sentence ("try again in 7m12s"), ``x-ratelimit-reset-*`` of each limit that is used up.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite
from time import time

from workers.providers.complaints import Complaint

MAX_WAIT_S = 86_400.0
_SINCE_1970_S = 1.5e9
_SINCE_1970_MS = 1e12
_UNITS_S = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6, "µs": 1e-6}
_SECONDS = re.compile(r"(\d{1,9}(?:\.\d{1,12})?) ?s(?:ec(?:ond)?s?)?", re.IGNORECASE)
_DURATION = re.compile(r"(?:\d{1,9}(?:\.\d{1,12})?(?:d|h|ms|us|µs|m|s))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|d|h|m|s)")
_SENTENCE = re.compile(
    r"\b(?:(?:re)?try(?:ing)? (?:again )?(?:in|after)|(?:please )?wait(?: for)?|available in)"
    r" (?:about |at least )?(\d{1,9}(?:\.\d{1,12})?) ?"
    r"(sec(?:ond)?s?|min(?:ute)?s?|hours?|milliseconds?)\b"
    r"|\b(?:re)?try(?:ing)? (?:again )?(?:in|after) ((?:\d{1,9}(?:\.\d{1,12})?(?:d|h|ms|m|s))+)(?![a-z])",
    re.IGNORECASE,
)
_WORDS = {"sec": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "hour": 3600.0, "millisecond": 0.001}
_RESET = re.compile(r"(?:x|anthropic)-ratelimit-(?:reset(?P<suffix>-[a-z-]+)?|(?P<infix>[a-z-]+)-reset)")


def retry_after(headers: Mapping[str, str], complaint: Complaint | None = None) -> float | None:
    """Seconds to wait before the same request may be sent again, a day at most; None where nothing says.

    ``headers`` have lower-case names. Source of the header's forms: RFC 9110, 10.2.3; the others are providers' own.
    """
    for seconds in _asked(headers, complaint):
        if seconds is not None and isfinite(seconds):
            return min(max(0.0, seconds), MAX_WAIT_S)
    return None


def _asked(headers: Mapping[str, str], complaint: Complaint | None) -> Iterator[float | None]:
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        yield _number(headers.get(name), 0.001)
    yield _seconds(headers.get("retry-after"))
    if complaint is not None:
        yield _seconds(complaint.wait)
        yield _seconds(complaint.headers.get("retry-after"))
        yield _in_words(complaint.message)
        yield _reset(complaint.headers)
    yield _reset(headers)


def _seconds(text: str | None) -> float | None:
    """Seconds from a number, a duration such as ``6m0s``, a moment since 1970 or a date."""
    if not text:
        return None
    number = _number(text, 1.0)
    if number is not None:
        if number >= _SINCE_1970_MS:
            return number / 1000 - time()
        return number - time() if number >= _SINCE_1970_S else number
    if found := _SECONDS.fullmatch(text.strip()):
        return float(found[1])
    if _DURATION.fullmatch(text.strip()):
        return sum(float(count) * _UNITS_S[unit] for count, unit in _PART.findall(text))
    return _until(text)


def _number(text: str | None, unit: float) -> float | None:
    try:
        return float(text or "") * unit
    except ValueError:
        return None


def _until(date: str) -> float | None:
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            moment = read(date.strip())
            # A date without a zone is UTC, as it is in HTTP, wherever this machine stands.
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - time()
        except (ValueError, OverflowError, TypeError):
            continue
    return None


def _in_words(message: str) -> float | None:
    found = _SENTENCE.search(message)
    if found is None:
        return None
    if found[1]:
        return float(found[1]) * _WORDS[found[2].lower().rstrip("s")]
    return _seconds(found[3])


def _reset(headers: Mapping[str, str]) -> float | None:
    """Until the last of the limits that are used up is there again; of all, where it is not said which those are."""
    resets, used_up = [], []
    for name, value in headers.items():
        found = _RESET.fullmatch(name)
        if found is None or (seconds := _seconds(value)) is None:
            continue
        resets.append(seconds)
        if headers.get(_remaining(name)) == "0":
            used_up.append(seconds)
        elif _remaining(name) in headers:
            resets.pop()
    return max(used_up or resets, default=None)


def _remaining(reset: str) -> str:
    """The header that says what is left of the limit of a header ``reset``."""
    return reset.replace("reset", "remaining")
