"""Dates, times and durations as a spreadsheet shows them, with its own calendar.

A date is a count of days: 1 is 1 January 1900 and 60 is 29 February 1900, a day that only spreadsheets have; in the
system of 1904, 0 is 1 January 1904. The fraction is the time of the day. Names of months and days are English.
"""

import datetime as dt
import re
from collections.abc import Sequence

from api.batches.formatparts import Part, sections_of

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
DAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
DAYS_TO_1904 = 1462
_LAST_DAY = 2958465  # 31 December 9999
_LEAP_DAY = 60
_FIRST = dt.date(1899, 12, 31).toordinal()
_ELAPSED = re.compile(r"h+|m+|s+", re.IGNORECASE)
_BUDDHIST_YEARS = 543
_SYSTEM = {"$-F800": "yyyy-mm-dd", "$-F400": "hh:mm:ss"}
"""Formats that look different on each machine, and the ISO 8601 that is shown for them."""


def is_date(parts: Sequence[Part]) -> bool:
    """Whether a section shows a date, a time or a duration."""
    return any(part.kind in ("date", "half") or (part.kind == "bracket" and _elapsed(part)) for part in parts)


def _elapsed(part: Part) -> bool:
    return _ELAPSED.fullmatch(part.text) is not None


class DateSection:
    """A section that shows a date, a time or a duration."""

    def __init__(self, parts: Sequence[Part], *, date1904: bool) -> None:
        self._first_day = DAYS_TO_1904 if date1904 else 0
        for of_machine in [_SYSTEM[part.text.upper()] for part in parts if part.text.upper() in _SYSTEM]:
            (parts,) = sections_of(of_machine)
        self._half = any(part.kind == "half" for part in parts)
        self._units = _units(parts)
        fractions = [len(text) - 1 for unit, text in self._units if unit == "fraction"]
        self._decimals = min(fractions[0], 6) if fractions else 0

    def show(self, value: float) -> str | None:
        """A number of days as its date; None when the calendar does not have that date."""
        if value < 0 or value + self._first_day >= _LAST_DAY + 1:
            return None
        per_second = 10**self._decimals
        ticks = int(value * 86400 * per_second + 0.5)
        seconds, fraction = divmod(ticks, per_second)
        day, second = divmod(seconds, 86400)
        if not _shows_time(self._units):
            day, second = int(value), 0
        date = calendar_day(day + self._first_day)
        fractions = f"{fraction:0{self._decimals}d}" if self._decimals else ""
        return "".join([self._shown(unit, text, date, seconds, second, fractions) for unit, text in self._units])

    def _shown(
        self, unit: str, text: str, date: tuple[int, int, int, int], seconds: int, second: int, fraction: str
    ) -> str:
        match unit:
            case "literal":
                return text
            case "fraction":
                return f".{fraction}"
            case "half":
                names = ("AM", "PM") if len(text) > 3 else ("A", "P")
                return names[second >= 43200]
            case "elapsed":
                per = {"h": 3600, "m": 60, "s": 1}[text[0]]
                return f"{seconds // per:0{len(text)}d}"
            case "h":
                hour = second // 3600
                return f"{(hour + 11) % 12 + 1 if self._half else hour:0{min(len(text), 2)}d}"
            case "minute":
                return f"{second // 60 % 60:0{min(len(text), 2)}d}"
            case "s":
                return f"{second % 60:0{min(len(text), 2)}d}"
        return _of_date(unit, len(text), date)


def calendar_day(serial: int) -> tuple[int, int, int, int]:
    """The year, month, day and weekday (0 is Sunday) of a count of days, as a spreadsheet has them."""
    weekday = (serial - 1) % 7
    if serial in (0, _LEAP_DAY):
        return (1900, 2, 29, weekday) if serial else (1900, 1, 0, weekday)
    date = dt.date.fromordinal(_FIRST + serial - (serial > _LEAP_DAY))
    return date.year, date.month, date.day, weekday


def serial_of(text: str, *, date1904: bool = False) -> float:
    """The count of days of a date or a time in ISO 8601, as strict workbooks have them; raises ValueError."""
    try:
        time = dt.time.fromisoformat(text)
        days, seconds = 0, time.hour * 3600 + time.minute * 60 + time.second + time.microsecond / 1e6
    except ValueError:
        moment = dt.datetime.fromisoformat(text)
        days = moment.toordinal() - _FIRST
        days += days >= _LEAP_DAY
        days -= DAYS_TO_1904 if date1904 else 0
        seconds = moment.hour * 3600 + moment.minute * 60 + moment.second + moment.microsecond / 1e6
    return days + seconds / 86400


def _units(parts: Sequence[Part]) -> list[tuple[str, str]]:
    """What each part shows. An ``m`` next to hours or seconds is minutes; else it is a month."""
    found: list[tuple[str, str]] = []
    for part in parts:
        if part.kind == "bracket" and _elapsed(part):
            found.append(("elapsed", part.text.lower()))
        elif part.kind == "date":
            found.append((part.text[0].lower(), part.text.lower()))
        elif part.kind in ("half", "fraction"):
            found.append((part.kind, part.text))
        elif part.kind in ("digit", "comma"):
            found.append(("literal", part.text))
        else:
            found.append(("literal", part.shown))
    units = [place for place, (unit, _) in enumerate(found) if unit not in ("literal", "half", "fraction")]
    for number, place in enumerate(units):
        unit, text = found[place]
        if unit != "m" or len(text) > 2:
            continue
        before = found[units[number - 1]] if number else ("", "")
        after = found[units[number + 1]] if number + 1 < len(units) else ("", "")
        if _counts(before, "h") or _counts(after, "s"):
            found[place] = ("minute", text)
    return found


def _counts(shown: tuple[str, str], letter: str) -> bool:
    """Whether a part shows hours (``h``) or seconds (``s``), of the day or of a duration."""
    unit, text = shown
    return unit == letter or (unit == "elapsed" and text.startswith(letter))


def _shows_time(units: Sequence[tuple[str, str]]) -> bool:
    return any(unit in ("h", "minute", "s", "elapsed", "half", "fraction") for unit, _ in units)


def _of_date(unit: str, width: int, date: tuple[int, int, int, int]) -> str:
    year, month, day, weekday = date
    match unit:
        case "y":
            return f"{year % 100:02d}" if width < 3 else f"{year:04d}"
        case "e":
            return f"{year:04d}"
        case "b":
            return f"{(year + _BUDDHIST_YEARS) % 100:02d}" if width < 3 else f"{year + _BUDDHIST_YEARS:04d}"
        case "m" if width > 2:
            name = MONTHS[month - 1]
            return name[:3] if width == 3 else name[:1] if width == 5 else name
        case "m":
            return f"{month:0{width}d}"
        case "d" if width > 2:
            return DAYS[weekday][:3] if width == 3 else DAYS[weekday]
        case "d":
            return f"{day:0{width}d}"
    return ""
