"""Strings and numbers of a JSON Schema as grammar expressions. Pure.

Each function gives an expression and whether it lets only valid values through.
"""

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from math import ceil, floor
from typing import Any

from workers.engine.decimal_gbnf import decimals_between
from workers.engine.gbnf import EMPTY, Expression, Rules, choose_text, concat
from workers.engine.json_gbnf import BLOCK, MAX_BOUND, QUOTE, Bound, any_number, integer, number, string
from workers.engine.pattern import convert_pattern
from workers.engine.schema_formats import FORMATS, UNWRITTEN

Converted = tuple[Expression, bool]

_MAX_MULTIPLES = 500
_MAX_PLACES = 9
_WAYS_OF_FORMATS = 10**9
"""The patterns of formats are our own, and known to be quick."""


def string_of(schema: Mapping[str, Any], rules: Rules, *, repetitions: int, patterns: bool) -> Converted:
    """The strings of a schema; raises GrammarTooLargeError."""
    least, most = count_of(schema, "minLength"), count_of(schema, "maxLength")
    pattern, form = schema.get("pattern"), schema.get("format")
    wanted = pattern if isinstance(pattern, str) else FORMATS.get(form) if isinstance(form, str) else None
    plain = form not in FORMATS and form not in UNWRITTEN
    if wanted is not None and patterns:
        more = {} if pattern is not None else {"max_ways": _WAYS_OF_FORMATS}
        content = convert_pattern(wanted, rules, least or 0, most, **more)
        if content is not None:
            lengths = content.lengths
            within = lengths.least >= (least or 0)
            within &= most is None or (lengths.most is not None and lengths.most <= most)
            return concat(QUOTE, content.expression, QUOTE), within and (pattern is None or plain)
    if least is not None and most is not None and least > most:
        return string(), False
    longest = repetitions * BLOCK if patterns else repetitions
    exact_least = (least or 0) <= longest
    exact_most = most is None or most <= longest
    made = string((least or 0) if exact_least else 0, most if exact_most else None)
    return made, wanted is None and plain and exact_least and exact_most


def number_of(schema: Mapping[str, Any], *, whole: bool) -> Converted:
    """The numbers of a schema; integers only if ``whole``."""
    lows, highs = _bounds(schema, "minimum", "exclusiveMinimum"), _bounds(schema, "maximum", "exclusiveMaximum")
    low = max(lows, key=lambda bound: (bound[0], bound[1]), default=None)
    high = min(highs, key=lambda bound: (bound[0], not bound[1]), default=None)
    step = _decimal(schema.get("multipleOf"))
    if step is not None and step == step.to_integral_value() == 1:
        whole, step = True, None
    return _integers(low, high, step) if whole else _decimals(low, high, step)


def enumerated(values: Sequence[Any], rules: Rules, most: int) -> tuple[Expression | None, bool]:
    """Any one of some values, spelled out; None when there are more than ``most`` or none that can be written."""
    if len(values) > most:
        return None, False
    texts: dict[str, None] = {}
    for value in values:
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
            text.encode()
        except (ValueError, RecursionError):  # not a number; half a character; too deep
            continue
        rules.spend(len(text))
        texts[text] = None
    if not texts:
        return None, False
    return choose_text([(text, EMPTY) for text in texts]), True


def count_of(schema: Mapping[str, Any], key: str) -> int | None:
    """A keyword's natural number; None when it has none."""
    value = schema.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0 or value != value // 1:
        return None
    return int(value)


def _integers(low: tuple[Decimal, bool] | None, high: tuple[Decimal, bool] | None, step: Decimal | None) -> Converted:
    exact = True
    least = None if low is None else floor(low[0]) + 1 if low[1] else ceil(low[0])
    most = None if high is None else ceil(high[0]) - 1 if high[1] else floor(high[0])
    if step is not None and step > 0 and step == step.to_integral_value():
        multiple = int(step)
        if least is not None and most is not None and (most - least) // multiple < _MAX_MULTIPLES:
            first = -(-least // multiple) * multiple
            texts = [(str(value), EMPTY) for value in range(first, most + 1, multiple)]
            return (choose_text(texts), True) if texts else (_any_integer(), False)
    exact = step is None
    if least is not None and abs(least) > MAX_BOUND:
        exact, least = exact and least < 0, None
    if most is not None and abs(most) > MAX_BOUND:
        exact, most = exact and most > 0, None
    made = integer(least, most)
    return (made, exact) if made is not None else (_any_integer(), False)


def _decimals(low: tuple[Decimal, bool] | None, high: tuple[Decimal, bool] | None, step: Decimal | None) -> Converted:
    places = _places(step)
    if low is None and high is None and places is None:
        return any_number(), step is None
    if step is None and any(edge is not None and edge[0] != edge[0].to_integral_value() for edge in (low, high)):
        within = decimals_between(low, high) if all(abs(edge[0]) < MAX_BOUND for edge in (low, high) if edge) else None
        if within is not None:
            return within, True
    exact = step is None or places is not None
    least = most = None
    if low is not None:
        whole = floor(low[0])
        exact &= whole == low[0]
        least = Bound(whole, low[1] and whole == low[0])
    if high is not None:
        whole = ceil(high[0])
        exact &= whole == high[0]
        most = Bound(whole, high[1] and whole == high[0])
    if least is not None and abs(least.value) > MAX_BOUND:
        exact, least = exact and least.value < 0, None
    if most is not None and abs(most.value) > MAX_BOUND:
        exact, most = exact and most.value > 0, None
    made = number(least, most, places)
    return (made, exact) if made is not None else (any_number(), False)


def _any_integer() -> Expression:
    made = integer(None, None)
    assert made is not None
    return made


def _places(step: Decimal | None) -> int | None:
    """How many decimals the multiples of a step have, if that is all that it says: of 0.01, two."""
    if step is None:
        return None
    _, digits, exponent = step.normalize().as_tuple()
    if digits != (1,) or not isinstance(exponent, int) or not -_MAX_PLACES <= exponent <= 0:
        return None
    return -exponent


def _bounds(schema: Mapping[str, Any], inclusive: str, exclusive: str) -> list[tuple[Decimal, bool]]:
    """The bounds on one side, each with whether it is itself excluded; draft 4 says that by a boolean."""
    inner, outer = _decimal(schema.get(inclusive)), _decimal(schema.get(exclusive))
    bounds = [(inner, schema.get(exclusive) is True)] if inner is not None else []
    return bounds + ([(outer, True)] if outer is not None else [])


def _decimal(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        made = Decimal(str(value))
    except (InvalidOperation, ValueError):  # ValueError: an integer of thousands of digits
        return None
    return made if made.is_finite() and made.adjusted() < 1000 else None
