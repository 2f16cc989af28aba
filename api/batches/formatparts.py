"""The parts of a spreadsheet's number format: digits, text, dates, and the ends of its sections."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

_PART = re.compile(
    r"""
    "(?P<quoted>[^"]*)"?
    | \\(?P<escaped>.)
    | _(?P<space>.)
    | \*(?P<fill>.)
    | \[(?P<bracket>[^\]]*)\]?
    | (?P<general>general)
    | (?P<half>am/pm|a/p)
    | (?P<power>e[+-])
    | (?P<calendar>b[12])
    | (?P<date>y+|m+|d+|h+|s+|b+|e+|g+)
    | (?P<fraction>(?:(?<=s)|(?<=s\]))\.0+)
    | (?P<point>\.)
    | (?P<digit>[0-9\#?])
    | (?P<comma>,)
    | (?P<percent>%)
    | (?P<slash>/)
    | (?P<text>@)
    | (?P<end>;)
    | (?P<other>.)
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_SYMBOL = re.compile(r"\$([^-]*)(?:-[0-9A-Fa-f]+(?:,[0-9A-Fa-f]+)?)?")
_MOST_PLAIN, _LEAST_PLAIN = 1e21, 1e-9
"""Between these, a number in the format ``General`` is written without a power of ten."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a section: its ``text`` in the format, and what it shows by itself (``shown``)."""

    kind: str
    text: str
    shown: str = ""


def sections_of(code: str) -> Sequence[Sequence[Part]]:
    """The sections of a format, each in its parts."""
    sections: list[list[Part]] = [[]]
    for found in _PART.finditer(code):
        kind = str(found.lastgroup)
        text = found[kind]
        if kind == "end":
            sections.append([])
        else:
            sections[-1].append(_part(kind, text))
    return sections


def _part(kind: str, text: str) -> Part:
    if kind in ("quoted", "escaped", "other"):
        return Part("literal", text, text)
    if kind == "space":
        return Part("space", text, " ")
    if kind == "bracket":
        symbol = _SYMBOL.fullmatch(text)
        return Part("bracket", text, symbol[1] if symbol else "")
    shows_itself = kind in ("percent", "slash", "point") or (kind == "digit" and text in "123456789")
    return Part(kind, text, text if shows_itself else "")


def general(digits: str) -> str:
    """The digits of a file as a number in the format ``General``; raises ValueError if they are not a number.

    A whole number keeps every digit of the file. Any other number has 15, which is what a spreadsheet keeps.
    """
    if digits.isdigit() and digits.isascii() and (digits[0] != "0" or len(digits) == 1):
        return digits
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(digits)
    whole = digits.strip()
    if whole[:1] == "-" and whole[1:].isdigit() and whole.isascii() and whole[1] != "0":
        return whole
    if value == 0:
        return "0"
    shortest = f"{value:.15g}"
    if "e" not in shortest:
        return shortest
    if _LEAST_PLAIN <= abs(value) < _MOST_PLAIN:
        return f"{Decimal(shortest):f}"
    mantissa, _, power = shortest.partition("e")
    return f"{mantissa}E{int(power):+03d}"
