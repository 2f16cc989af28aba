"""JSON's own values as grammar expressions: strings, numbers within bounds, and any value to a bounded depth. Pure."""

from dataclasses import dataclass

from workers.engine.gbnf import (
    EMPTY,
    MAX_REPETITIONS,
    Chars,
    Expression,
    Range,
    Ref,
    Repeat,
    Rules,
    Text,
    all_but,
    choice,
    concat,
    optional,
    repeat,
    without,
)

MAX_DIGITS = 15
"""The most digits of a number whose bounds do not ask for more."""

MAX_BOUND = 10**18
"""Bounds beyond this are left to the check."""

_VALUE_DEPTH = 12
"""How deep a value without a schema may nest."""

_CONTROL: Range = (0, 0x1F)
_QUOTE: Range = (0x22, 0x22)
_BACKSLASH: Range = (0x5C, 0x5C)
_SURROGATES: Range = (0xD800, 0xDFFF)
_ESCAPES = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}

DIGIT = Chars(((0x30, 0x39),))
_NONZERO = Chars(((0x31, 0x39),))
_HEX: tuple[Range, ...] = ((0x30, 0x39), (0x41, 0x46), (0x61, 0x66))
SPACE = Ref("ws")
CHARACTER = Ref("char")
QUOTE = Text('"')

BLOCK = 200
"""Long strings are counted in blocks of so many characters."""

_BLOCK_OF_CHARACTERS = Repeat(CHARACTER, BLOCK, BLOCK)


def define_basics(rules: Rules) -> None:
    """Define what every JSON grammar refers to."""
    rules.define(rules.reserve("ws"), optional(_SPACE_RUN))
    rules.define(rules.reserve("char"), _ANY_CHARACTER)


def character_in(ranges: tuple[Range, ...]) -> Expression | None:
    """One character of a JSON string, of some ranges of code points; None when JSON writes none of them plainly."""
    raw = without(ranges, [_CONTROL, _QUOTE, _BACKSLASH, _SURROGATES])
    escaped = sorted(
        ord(letter) for char, letter in _ESCAPES.items() if any(low <= ord(char) <= high for low, high in ranges)
    )
    options: list[Expression] = [Chars(raw)] if raw else []
    if escaped:
        options.append(concat(Text("\\"), Chars(tuple((code, code) for code in escaped))))
    return choice(options) if options else None


def text_in_string(text: str) -> str:
    """A text as JSON writes it between quotes."""
    return "".join(
        "\\" + _ESCAPES[char] if char in _ESCAPES else f"\\u{ord(char):04x}" if char < " " else char for char in text
    )


def string(least: int = 0, most: int | None = None) -> Expression:
    """A string of so many characters."""
    if max(least, most or 0) <= MAX_REPETITIONS:
        return concat(QUOTE, repeat(CHARACTER, least, most), QUOTE)
    more = repeat(CHARACTER, 0, None) if most is None else _up_to(most - least)
    return concat(QUOTE, repeat(_BLOCK_OF_CHARACTERS, *[least // BLOCK] * 2), _some(least % BLOCK), more, QUOTE)


def integer(low: int | None, high: int | None) -> Expression | None:
    """The integers between two bounds; None when there are none."""
    options: list[Expression] = []
    if low is None or low < 0:
        nearest = 1 if high is None or high >= 0 else -high
        negative = naturals(nearest, None if low is None else -low)
        options += [concat(Text("-"), negative)] if negative is not None else []
    if high is None or high >= 0:
        positive = naturals(max(0, low or 0), high)
        options += [positive] if positive is not None else []
    return choice(options) if options else None


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound of numbers that is an integer; ``open`` when the bound itself is excluded."""

    value: int
    open: bool = False


def number(low: Bound | None, high: Bound | None, places: int | None = None) -> Expression | None:
    """The numbers between two bounds, written without an exponent; None when there are none.

    ``places`` is the most decimals that they may have.
    """
    options: list[Expression] = []
    if low is None or low.value < 0:
        nearest = Bound(0) if high is None or high.value > 0 else Bound(-high.value, high.open)
        farthest = None if low is None else Bound(-low.value, low.open)
        negative = _decimals(nearest, farthest, MAX_DIGITS if places is None else places)
        options += [concat(Text("-"), negative)] if negative is not None else []
    if high is None or high.value >= 0:
        bottom = Bound(0) if low is None or low.value < 0 else low
        positive = _decimals(bottom, high, MAX_DIGITS if places is None else places)
        options += [positive] if positive is not None else []
    return choice(options) if options else None


def any_number() -> Expression:
    """Any number of a bounded length."""
    whole = choice([Text("0"), concat(_NONZERO, repeat(DIGIT, 0, MAX_DIGITS))])
    sign = Chars(((0x2B, 0x2B), (0x2D, 0x2D)))
    fraction = concat(Text("."), repeat(DIGIT, 1, MAX_DIGITS))
    exponent = concat(Chars(((0x45, 0x45), (0x65, 0x65))), optional(sign), repeat(DIGIT, 1, 2))
    return concat(optional(Text("-")), whole, optional(fraction), optional(exponent))


def any_value(rules: Rules, depth: int = _VALUE_DEPTH) -> Ref:
    """Any JSON value that nests at most ``depth`` deep."""
    return _any(rules, depth, "json")


def any_object(rules: Rules, depth: int = _VALUE_DEPTH) -> Ref:
    """Any JSON object that nests at most ``depth`` deep."""
    return _any(rules, depth, "object")


def any_array(rules: Rules, depth: int = _VALUE_DEPTH) -> Ref:
    """Any JSON array that nests at most ``depth`` deep."""
    return _any(rules, depth, "array")


def comma_separated(item: Expression, least: int = 0, most: int | None = None) -> Expression:
    """Items with commas between them; ``most`` is at least 1."""
    more = repeat(concat(Text(","), SPACE, item), max(0, least - 1), None if most is None else most - 1)
    some = concat(item, more)
    return some if least else optional(some)


def in_brackets(opening: str, inner: Expression, closing: str) -> Expression:
    """Something between brackets, with the space that JSON allows there."""
    return concat(Text(opening), SPACE, inner, SPACE, Text(closing))


def pair(key: Expression, value: Expression) -> Expression:
    """A key, with its quotes, and its value."""
    return concat(key, Text(":"), SPACE, value)


def _up_to(most: int) -> Expression:
    """So many characters at most: in whole blocks first, so that the grammar does not count each."""
    blocks, rest = divmod(most, BLOCK)
    full = concat(repeat(_BLOCK_OF_CHARACTERS, blocks, blocks), repeat(CHARACTER, 0, rest))
    if not blocks:
        return full
    return choice([concat(repeat(_BLOCK_OF_CHARACTERS, 0, blocks - 1), repeat(CHARACTER, 0, BLOCK - 1)), full])


def _some(number: int) -> Expression:
    return repeat(CHARACTER, number, number)


def _any(rules: Rules, depth: int, kind: str) -> Ref:
    name = f"{kind}-{depth}"
    if name in rules.rules:
        return Ref(name)
    for level in range(depth + 1):
        if f"json-{level}" in rules.rules:
            continue
        scalar = rules.add(_SCALAR, "scalar")
        options = [scalar]
        if level:
            inner = Ref(f"json-{level - 1}")
            members = comma_separated(rules.add(pair(string(), inner)))
            items = comma_separated(inner)
            for composite, parts in (
                ("object", in_brackets("{", members, "}")),
                ("array", in_brackets("[", items, "]")),
            ):
                rule = rules.reserve(f"{composite}-{level}")
                rules.define(rule, parts)
                options.append(rule)
        rules.define(rules.reserve(f"json-{level}"), choice(options))
    return Ref(name)


def naturals(low: int, high: int | None) -> Expression | None:
    """The natural numbers between two bounds, without leading zeros."""
    if high is not None and high < low:
        return None
    options: list[Expression] = []
    first = len(str(low))
    for length in range(first, (first if high is None else len(str(high))) + 1):
        least = max(low, 10 ** (length - 1) if length > 1 else 0)
        most = 10**length - 1 if high is None else min(high, 10**length - 1)
        options.append(_same_length(str(least), str(most)))
    if high is None:
        options.append(concat(_NONZERO, repeat(DIGIT, first, max(first, MAX_DIGITS))))
    return choice(options)


def _same_length(low: str, high: str) -> Expression:
    """The numbers between two of the same number of digits, with leading zeros."""
    if low == high:
        return Text(low)
    length = len(low)
    if set(low) == {"0"} and set(high) == {"9"}:
        return repeat(DIGIT, length, length)
    if low[0] == high[0]:
        return concat(Text(low[0]), _same_length(low[1:], high[1:]))
    if length == 1:
        return Chars(((ord(low), ord(high)),))
    options: list[Expression] = []
    first, last = int(low[0]), int(high[0])
    if set(low[1:]) != {"0"}:
        options.append(concat(Text(low[0]), _same_length(low[1:], "9" * (length - 1))))
        first += 1
    after = None
    if set(high[1:]) != {"9"}:
        after = concat(Text(high[0]), _same_length("0" * (length - 1), high[1:]))
        last -= 1
    if first <= last:
        options.append(concat(Chars(((0x30 + first, 0x30 + last),)), repeat(DIGIT, length - 1, length - 1)))
    return choice([*options, *([after] if after is not None else [])])


def _decimals(low: Bound, high: Bound | None, places: int) -> Expression | None:
    """The decimal numbers between two natural bounds."""
    if high is not None and (high.value < low.value or (high.value == low.value and (low.open or high.open))):
        return None
    largest = low.value if high is None else max(low.value, high.value)
    places = min(places, max(0, MAX_DIGITS - len(str(largest))))  # more would be rounded, perhaps to a bound
    zeros = optional(concat(Text("."), repeat(Text("0"), 1, places))) if places else EMPTY
    fraction = optional(concat(Text("."), repeat(DIGIT, 1, places))) if places else EMPTY
    if high is not None and high.value == low.value:
        return concat(Text(str(low.value)), zeros)
    options: list[Expression] = []
    if low.open and places:
        options.append(concat(Text(f"{low.value}."), not_zero(places)))
    between = naturals(low.value + low.open, None if high is None else high.value - 1)
    if between is not None:
        options.append(concat(between, fraction))
    if high is not None and not high.open:
        options.append(concat(Text(str(high.value)), zeros))
    return choice(options) if options else None


def not_zero(places: int) -> Expression:
    """Decimals of which one is not zero."""
    return choice(concat(Text("0" * zeros), _NONZERO, repeat(DIGIT, 0, places - 1 - zeros)) for zeros in range(places))


_UNICODE = choice(
    [
        concat(Chars(without(_HEX, [(0x44, 0x44), (0x64, 0x64)])), repeat(Chars(_HEX), 3, 3)),
        concat(Chars(((0x44, 0x44), (0x64, 0x64))), Chars(((0x30, 0x37),)), repeat(Chars(_HEX), 2, 2)),
    ]
)
"""The digits of an escaped character; without halves of pairs, which are no characters."""

_ANY_CHARACTER = choice(
    [
        Chars(all_but([_CONTROL, _QUOTE, _BACKSLASH, (0x7F, 0x7F), _SURROGATES])),
        concat(
            Text("\\"),
            choice([Chars(tuple((ord(c), ord(c)) for c in '"/\\bfnrt')), concat(Text("u"), _UNICODE)]),
        ),
    ]
)

_SCALAR = choice([string(), any_number(), Text("true"), Text("false"), Text("null")])

_SPACE_RUN = choice([Text(" "), concat(Text("\n"), repeat(Chars(((9, 9), (32, 32))), 0, 20))])
