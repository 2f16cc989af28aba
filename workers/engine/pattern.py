"""From a schema's ``pattern``, a regular expression, to a grammar expression of the string's content. Pure.

The regular expressions of JSON Schema are those of ECMA-262. What a grammar can say is converted: characters, classes,
groups, alternatives, repetitions, anchors at the ends. For the rest (looking ahead, back references, word borders,
properties of Unicode) there is no expression, and the check of the answer decides alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workers.engine.gbnf import (
    EMPTY,
    MAX_REPETITIONS,
    Expression,
    Range,
    Repeat,
    Rules,
    Text,
    all_but,
    choice,
    concat,
)
from workers.engine.json_gbnf import CHARACTER, character_in, text_in_string

MAX_LENGTH = 4000
_MAX_GROUPS_DEEP = 12
_MAX_EMPTY_IN_A_ROW = 12
"""Parts in a row that may each be left out: the ways to go on from there multiply."""

_MAX_WAYS = 100
"""About in how many ways one text of a caller's pattern may be read: each is compared with every token of the
vocabulary."""

_DIGITS: tuple[Range, ...] = ((0x30, 0x39),)
_WORD: tuple[Range, ...] = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACES: tuple[Range, ...] = ((0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A))
_SPACES += ((0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF))
_LINE_ENDS: tuple[Range, ...] = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_CLASSES = {"d": _DIGITS, "w": _WORD, "s": _SPACES}
_CONTROLS = {"n": 0x0A, "r": 0x0D, "t": 0x09, "f": 0x0C, "v": 0x0B, "0": 0x00}
_LITERAL_ESCAPES = frozenset("^$\\.*+?()[]{}|/-\"'`~!@#%&=:;,<>_ ")


class _NoGrammarError(Exception):
    """The expression says what a grammar cannot."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """The least and the most characters that an expression stands for; None is without end."""

    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a string, as a grammar expression, and how long it is."""

    expression: Expression
    lengths: Lengths


@dataclass(frozen=True, slots=True)
class _Set:
    ranges: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class _Sequence:
    items: tuple["_Node", ...]


@dataclass(frozen=True, slots=True)
class _Either:
    options: tuple["_Node", ...]


@dataclass(frozen=True, slots=True)
class _Times:
    item: "_Node"
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class _Anchor:
    at_start: bool


_Node = _Set | _Sequence | _Either | _Times | _Anchor


def convert_pattern(
    pattern: str, rules: Rules, least: int = 0, most: int | None = None, *, max_ways: int = _MAX_WAYS
) -> Content | None:
    """The strings that a pattern matches somewhere, as JSON writes their content; None when no grammar says it.

    Of a pattern that is one repeated character, ``least`` and ``most`` narrow the repetition. ``max_ways`` is about in
    how many ways one text may be read.
    Raises GrammarTooLargeError.
    """
    if len(pattern) > MAX_LENGTH:
        return None
    try:
        node = _Reader(pattern).read()
        rules.spend(len(pattern))
        branches = node.options if isinstance(node, _Either) else (node,)
        contents = [_branch(branch, least, most, max_ways) for branch in branches]
    except _NoGrammarError:
        return None
    ends = [content.lengths.most for content in contents]
    longest = None if None in ends else max(end for end in ends if end is not None)
    shortest = min(content.lengths.least for content in contents)
    return Content(choice(content.expression for content in contents), Lengths(shortest, longest))


def _branch(node: _Node, least: int, most: int | None, max_ways: int) -> Content:
    """One alternative of a whole pattern: without an anchor, anything may be before or after it."""
    items: list[_Node] = list(node.items) if isinstance(node, _Sequence) else [node]
    if len(items) == 1 and isinstance(items[0], _Either):  # ^ and $ within the only group
        contents = [_branch(option, least, most, max_ways) for option in items[0].options]
        ends = [content.lengths.most for content in contents]
        longest = None if None in ends else max(end for end in ends if end is not None)
        shortest = min(content.lengths.least for content in contents)
        return Content(choice(content.expression for content in contents), Lengths(shortest, longest))
    starts = bool(items) and items[0] == _Anchor(at_start=True)
    items = items[starts:]
    ends_there = bool(items) and items[-1] == _Anchor(at_start=False)
    items = items[: len(items) - ends_there]
    parts = _join_repetitions(items)
    only = parts[0] if len(parts) == 1 else None
    if starts and ends_there and isinstance(only, _Times) and isinstance(only.item, _Set):
        parts = [_narrowed(only, least, most)]
    if _ways(_Sequence(tuple(parts))) > max_ways:
        raise _NoGrammarError
    inner, lengths = _convert(_Sequence(tuple(parts)), 0)
    before = EMPTY if starts else Repeat(CHARACTER, 0, None)
    after = EMPTY if ends_there else Repeat(CHARACTER, 0, None)
    return Content(concat(before, inner, after), lengths if starts and ends_there else Lengths(lengths.least, None))


def _narrowed(times: _Times, least: int, most: int | None) -> _Times:
    ends = [end for end in (times.most, most) if end is not None and end <= MAX_REPETITIONS]
    narrowed = _Times(times.item, max(times.least, least), min(ends) if ends else None)
    possible = narrowed.least <= MAX_REPETITIONS and (narrowed.most is None or narrowed.least <= narrowed.most)
    return narrowed if possible else times


def _convert(node: _Node, depth: int) -> tuple[Expression, Lengths]:
    """Raises _NoGrammarError."""
    if depth > _MAX_GROUPS_DEEP * 2:
        raise _NoGrammarError
    match node:
        case _Set(ranges):
            expression = _one_character(ranges)
            return expression, Lengths(1, 1)
        case _Either(options):
            converted = [_convert(option, depth + 1) for option in options]
            mosts = [lengths.most for _, lengths in converted]
            longest = None if None in mosts else max(most for most in mosts if most is not None)
            least = min(lengths.least for _, lengths in converted)
            return choice(expression for expression, _ in converted), Lengths(least, longest)
        case _Times(item, least, most):
            return _repeated(_convert(item, depth + 1), least, most)
        case _Sequence(items):
            return _in_order([_convert(item, depth + 1) for item in _join_repetitions(list(items))])
    raise _NoGrammarError  # an anchor in the middle


def _ways(node: _Node) -> int:
    """About how many ways to read a text a pattern keeps open: counted repetitions multiply where one follows, or is
    within, another."""
    match node:
        case _Either(options):
            return sum(map(_ways, options))
        case _Times(item, least, most):
            counted = 1 if most is None else max(1, most - least)
            varies = not isinstance(item, _Set) and _lengths_vary(item)
            return _ways(item) * (counted if varies else 1)
        case _Sequence(items):
            most_ways = run = last = 1
            for item in items:
                if not _lengths_vary(item):
                    run = last = 1
                    continue
                run *= last * _ways(item)
                last = max(1, item.most - item.least) if isinstance(item, _Times) and item.most is not None else 1
                most_ways = max(most_ways, run)
            return most_ways
    return 1


def _lengths_vary(node: _Node) -> bool:
    match node:
        case _Either(options):
            return len(options) > 1
        case _Times(item, least, most):
            return least != most or _lengths_vary(item)
        case _Sequence(items):
            return any(map(_lengths_vary, items))
    return False


def _one_character(ranges: tuple[Range, ...]) -> Expression:
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return Text(text_in_string(chr(ranges[0][0])))
    expression = character_in(ranges)
    if expression is None:
        raise _NoGrammarError
    return expression


def _repeated(item: tuple[Expression, Lengths], least: int, most: int | None) -> tuple[Expression, Lengths]:
    expression, lengths = item
    if least > MAX_REPETITIONS or (most is not None and (most > MAX_REPETITIONS or most < least)):
        raise _NoGrammarError
    if most == 0:
        return EMPTY, Lengths(0, 0)
    if lengths.least == 0 and (most is None or most > 1):
        raise _NoGrammarError  # repeating what may be nothing has no end
    longest = None if most is None or lengths.most is None else most * lengths.most
    times = expression if (least, most) == (1, 1) else Repeat(expression, least, most)
    return times, Lengths(least * lengths.least, longest)


def _in_order(parts: list[tuple[Expression, Lengths]]) -> tuple[Expression, Lengths]:
    empty_in_a_row = 0
    for _, lengths in parts:
        empty_in_a_row = empty_in_a_row + 1 if lengths.least == 0 else 0
        if empty_in_a_row > _MAX_EMPTY_IN_A_ROW:
            raise _NoGrammarError
    mosts = [lengths.most for _, lengths in parts]
    longest = None if None in mosts else sum(most for most in mosts if most is not None)
    least = sum(lengths.least for _, lengths in parts)
    return concat(*(expression for expression, _ in parts)), Lengths(least, longest)


def _join_repetitions(items: Sequence[_Node]) -> list[_Node]:
    """``x?x?x`` as ``x{1,3}``: written one by one, the ways to read an ``x`` would multiply."""
    joined: list[_Node] = []
    for item in items:
        last = joined[-1] if joined else None
        if last is not None and isinstance(last, _Times | _Set) and isinstance(item, _Times | _Set):
            one, other = _as_times(last), _as_times(item)
            if isinstance(one.item, _Set) and one.item == other.item and (one.least, one.most) != (one.most, one.least):
                most = None if one.most is None or other.most is None else one.most + other.most
                joined[-1] = _Times(one.item, one.least + other.least, most)
                continue
        joined.append(item)
    return joined


def _as_times(node: _Times | _Set) -> _Times:
    return node if isinstance(node, _Times) else _Times(node, 1, 1)


class _Reader:
    """Reads a regular expression. Raises _NoGrammarError at what a grammar cannot say, or what is no expression."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def read(self) -> _Node:
        """The whole expression."""
        node = self._alternatives(0)
        if self._at < len(self._pattern):
            raise _NoGrammarError
        return node

    def _alternatives(self, depth: int) -> _Node:
        if depth > _MAX_GROUPS_DEEP:
            raise _NoGrammarError
        options = [self._sequence(depth)]
        while self._take("|"):
            options.append(self._sequence(depth))
        return options[0] if len(options) == 1 else _Either(tuple(options))

    def _sequence(self, depth: int) -> _Node:
        items: list[_Node] = []
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            atom = self._atom(depth)
            times = None if isinstance(atom, _Anchor) else self._quantifier()
            items.append(atom if times is None else _Times(atom, *times))
        return items[0] if len(items) == 1 else _Sequence(tuple(items))

    def _atom(self, depth: int) -> _Node:
        char = self._next()
        special: dict[str, Callable[[], _Node]] = {
            "(": lambda: self._group(depth),
            "[": self._class,
            ".": lambda: _Set(all_but(_LINE_ENDS)),
            "^": lambda: _Anchor(at_start=True),
            "$": lambda: _Anchor(at_start=False),
            "\\": lambda: _Set(self._escape(in_class=False)),
        }
        if char in special:
            return special[char]()
        if char in "*+?{":
            raise _NoGrammarError
        return _Set(_only(char))

    def _group(self, depth: int) -> _Node:
        if self._take("?") and not self._take(":"):
            if not self._take("<") or self._peek() in "=!":
                raise _NoGrammarError
            while self._next() != ">":
                pass
        node = self._alternatives(depth + 1)
        if not self._take(")"):
            raise _NoGrammarError
        return node

    def _quantifier(self) -> tuple[int, int | None] | None:
        times: tuple[int, int | None] | None = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(self._peek())
        if times is not None:
            self._at += 1
        elif self._take("{"):
            least = self._integer()
            most: int | None = least
            if self._take(","):
                most = None if self._peek() == "}" else self._integer()
            if not self._take("}"):
                raise _NoGrammarError
            times = (least, most)
        if times is not None:
            self._take("?")  # how greedy it is makes no difference to what matches
            if self._peek() in ("*", "+", "?", "{"):
                raise _NoGrammarError
        return times

    def _class(self) -> _Node:
        negated = self._take("^")
        ranges: list[Range] = []
        while not self._take("]"):
            low = self._class_member()
            if self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._class_member()
                if len(low) != 1 or len(high) != 1 or low[0][0] != low[0][1] or high[0][0] < low[0][0]:
                    raise _NoGrammarError
                ranges.append((low[0][0], high[0][1]))
            else:
                ranges += low
        return _Set(all_but(ranges) if negated else _united(ranges))

    def _class_member(self) -> tuple[Range, ...]:
        char = self._next()
        if char == "[":  # other dialects begin a nested class here
            raise _NoGrammarError
        return self._escape(in_class=True) if char == "\\" else _only(char)

    def _escape(self, *, in_class: bool) -> tuple[Range, ...]:
        char = self._next()
        if char.lower() in _CLASSES:
            ranges = _CLASSES[char.lower()]
            return ranges if char.islower() else all_but(ranges)
        if char == "b" and in_class:
            return _only("\b")
        if char in _CONTROLS:
            return _only(chr(_CONTROLS[char]))
        if char in ("x", "u"):
            return _only(chr(self._hexadecimal(2 if char == "x" else 4)))
        if char in _LITERAL_ESCAPES:
            return _only(char)
        raise _NoGrammarError

    def _hexadecimal(self, length: int) -> int:
        digits = self._pattern[self._at : self._at + length]
        self._at += length
        if len(digits) != length or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
            raise _NoGrammarError
        code = int(digits, 16)
        if 0xD800 <= code <= 0xDFFF:
            raise _NoGrammarError
        return code

    def _integer(self) -> int:
        began = self._at
        while self._peek() in tuple("0123456789"):
            self._at += 1
        digits = self._pattern[began : self._at]
        if not digits or len(digits) > 9:
            raise _NoGrammarError
        return int(digits)

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _take(self, char: str) -> bool:
        if self._peek() != char:
            return False
        self._at += 1
        return True

    def _next(self) -> str:
        char = self._peek()
        if not char:
            raise _NoGrammarError
        self._at += 1
        return char


def _only(char: str) -> tuple[Range, ...]:
    return ((ord(char), ord(char)),)


def _united(ranges: list[Range]) -> tuple[Range, ...]:
    return all_but(all_but(ranges))
