"""How the command line writes numbers, money, durations and other people's text."""

import unicodedata
from collections.abc import Mapping
from datetime import datetime
from typing import Any

Json = dict[str, Any]  # Any: JSON
_UNSEEN = frozenset({"Cc", "Cs"})
_TURNING = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
"""They turn the direction of writing, and with it what a line seems to say."""


def plain(text: object) -> str:
    """A text as it may be shown on a terminal: what would move its cursor or change its colours is made visible."""
    return "".join("\ufffd" if _is_unseen(char) else char for char in str(text))


def _is_unseen(char: str) -> bool:
    return char not in "\n\t" and (unicodedata.category(char) in _UNSEEN or char in _TURNING)


def count(number: int) -> str:
    """A number with its thousands apart."""
    return f"{number:,}"


def rows(number: int) -> str:
    """A number of rows in words."""
    return "1 row" if number == 1 else f"{number:,} rows"


def usd(amount: object) -> str:
    """The wire's decimal string as dollars; cents at least, and no zeros after them."""
    whole, _, digits = str(amount or "0").partition(".")
    return f"${int(whole):,}.{digits.rstrip('0').ljust(2, '0')}"


def size(number: float) -> str:
    """Bytes in the largest unit that leaves more than one."""
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:,.0f} {unit}" if unit == "bytes" else f"{number:,.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} GB"


def duration(seconds: float) -> str:
    """A duration in its two largest units."""
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} days {whole % 86_400 // 3600} h"


def moment(value: object) -> str:
    """A time of the wire, unix seconds or ISO 8601, in the local time zone."""
    if value is None:
        return ""
    parsed = datetime.fromtimestamp(value).astimezone() if isinstance(value, int | float) else None
    return (parsed or datetime.fromisoformat(str(value)).astimezone()).strftime("%Y-%m-%d %H:%M:%S")


def pairs(members: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """The members of a JSON object by dotted name, without those that are null."""
    found = []
    for name, value in members.items():
        if isinstance(value, Mapping):
            found += pairs(value, f"{prefix}{name}.")
        elif value is not None:
            found.append((f"{prefix}{name}", plain(value)))
    return found
