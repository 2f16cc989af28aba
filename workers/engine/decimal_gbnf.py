"""Numbers between bounds that have decimals, as grammar expressions. Pure."""

from decimal import Decimal
from math import floor

from workers.engine.gbnf import EMPTY, Chars, Expression, Text, choice, concat, optional, repeat
from workers.engine.json_gbnf import DIGIT, MAX_DIGITS, naturals, not_zero

Edge = tuple[Decimal, bool]
"""A bound, and whether it is itself excluded."""


def decimals_between(low: Edge | None, high: Edge | None) -> Expression | None:
    """The numbers between two bounds, written without an exponent; None when that cannot be said."""
    options: list[Expression | None] = []
    if low is None or low[0] < 0:
        nearest = (Decimal(0), False) if high is None or high[0] > 0 else (-high[0], high[1])
        made = _magnitudes(nearest, None if low is None else (-low[0], low[1]))
        options.append(None if made is None else concat(Text("-"), made))
    if high is None or high[0] >= 0:
        bottom = (Decimal(0), False) if low is None or low[0] < 0 else low
        options.append(_magnitudes(bottom, high))
    known = [option for option in options if option is not None]
    return choice(known) if known and len(known) == len(options) else None


def _magnitudes(low: Edge, high: Edge | None) -> Expression | None:
    """The numbers from one bound, of at least 0, to another; None when they differ in their decimals only."""
    first, last = floor(low[0]), None if high is None else floor(high[0])
    places = MAX_DIGITS - max(len(str(first)), len(str(last or 0)))
    start, end = _digits(low[0]), "" if high is None else _digits(high[0])
    if max(len(start), len(end)) > places - 1 or (last is not None and last < first):
        return None
    if high is not None and first == last:
        known = not start and not low[1] and bool(end)
        return concat(Text(str(first)), _up_to(end, places, excluded=high[1])) if known else None
    any_fraction = optional(concat(Text("."), repeat(DIGIT, 1, places)))
    options = [concat(Text(str(first)), _from(start, places, excluded=low[1]))]
    between = naturals(first + 1, None if last is None else last - 1)
    if between is not None:
        options.append(concat(between, any_fraction))
    if high is not None and (end or not high[1]):
        options.append(concat(Text(str(last)), _up_to(end, places, excluded=high[1])))
    return choice(options)


def _digits(value: Decimal) -> str:
    """The decimals of a number, without zeros at the end."""
    return f"{value - floor(value):f}".partition(".")[2].rstrip("0")


def _from(start: str, places: int, *, excluded: bool) -> Expression:
    if not start and not excluded:
        return optional(concat(Text("."), repeat(DIGIT, 1, places)))
    return concat(Text("."), _at_least(start, places, excluded=excluded))


def _at_least(start: str, places: int, *, excluded: bool) -> Expression:
    """Decimals that come to no less than some."""
    if not start:
        return not_zero(places) if excluded else repeat(DIGIT, 0, places)
    exactly = concat(Text(start[0]), _at_least(start[1:], places - 1, excluded=excluded))
    if start[0] == "9":
        return exactly
    return choice([concat(Chars(((ord(start[0]) + 1, 0x39),)), repeat(DIGIT, 0, places - 1)), exactly])


def _up_to(end: str, places: int, *, excluded: bool) -> Expression:
    if not end:
        return optional(concat(Text("."), repeat(Text("0"), 1, places)))
    return optional(concat(Text("."), _at_most(end, places, excluded=excluded)))


def _at_most(end: str, places: int, *, excluded: bool) -> Expression:
    """Decimals, one at least, that come to no more than some."""
    options: list[Expression] = []
    if end[0] > "0":
        options.append(concat(Chars(((0x30, ord(end[0]) - 1),)), repeat(DIGIT, 0, places - 1)))
    if end[1:]:
        options.append(concat(Text(end[0]), optional(_at_most(end[1:], places - 1, excluded=excluded))))
    elif not excluded:
        options.append(concat(Text(end[0]), repeat(Text("0"), 0, places - 1)))
    return choice(options) if options else EMPTY
