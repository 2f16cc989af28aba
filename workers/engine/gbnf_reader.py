"""Reads GBNF, the text of a grammar, back into expressions (:mod:`workers.engine.gbnf`). Pure."""

import re

from workers.engine.gbnf import (
    MAX_NESTING,
    Chars,
    Expression,
    Range,
    Ref,
    Text,
    all_but,
    choice,
    concat,
    repeat,
)

_TOKEN = re.compile(
    r"""(?P<space>[ \t]+|\#[^\n]*)
      | (?P<line>\r?\n)
      | (?P<defines>::=)
      | (?P<name>[A-Za-z][A-Za-z0-9-]*)
      | "(?P<text>(?:[^"\\\n]|\\.)*)"
      | \[(?P<chars>(?:[^\]\\\n]|\\.)*)\]
      | \{(?P<times>\d+(?:,\d*)?)\}
      | (?P<mark>[()|*+?.])""",
    re.VERBOSE | re.DOTALL,
)
_CHARACTER = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))|(.)", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_TIMES: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}

_Token = tuple[str, str]


def read_grammar(text: str) -> dict[str, Expression]:
    """The rules of a grammar by their names. Raises ValueError at what is not GBNF."""
    lines: list[list[_Token]] = [[]]
    for kind, value in _tokens(text):
        if kind == "line":
            lines.append([])
        else:
            lines[-1].append((kind, value))
    rules = {}
    for line in filter(None, lines):
        if len(line) < 2 or line[0][0] != "name" or line[1][0] != "defines":
            raise ValueError("a rule begins with its name and ::=")
        rules[line[0][1]] = _Reader(line[2:]).read()
    return rules


def _tokens(text: str) -> list[_Token]:
    tokens, at = [], 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None or found.lastgroup is None:
            raise ValueError(f"unexpected {text[at : at + 10]!r}")
        if found.lastgroup != "space":
            tokens.append((found.lastgroup, found[found.lastgroup]))
        at = found.end()
    return tokens


class _Reader:
    """Reads one rule's expression."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def read(self) -> Expression:
        expression = self._alternatives(0)
        if self._at < len(self._tokens):
            raise ValueError(f"unexpected {self._tokens[self._at][1]!r}")
        return expression

    def _alternatives(self, depth: int) -> Expression:
        if depth > 2 * MAX_NESTING:
            raise ValueError("the groups nest too deep")
        options = [self._sequence(depth)]
        while self._take("|"):
            options.append(self._sequence(depth))
        return choice(options)

    def _sequence(self, depth: int) -> Expression:
        items = []
        while self._at < len(self._tokens) and self._tokens[self._at] not in (("mark", "|"), ("mark", ")")):
            item = self._item(depth)
            while self._at < len(self._tokens):
                kind, value = self._tokens[self._at]
                times = _TIMES.get(value) if kind == "mark" else _range(value) if kind == "times" else None
                if times is None:
                    break
                item, self._at = repeat(item, *times), self._at + 1
            items.append(item)
        return concat(*items)

    def _item(self, depth: int) -> Expression:
        kind, value = self._tokens[self._at]
        self._at += 1
        match kind, value:
            case "name", _:
                return Ref(value)
            case "text", _:
                return Text("".join(map(chr, _characters(value))))
            case "chars", _:
                return Chars(_ranges(value))
            case "mark", ".":
                return Chars(all_but([]))
            case "mark", "(":
                inner = self._alternatives(depth + 1)
                if self._take(")"):
                    return inner
        raise ValueError(f"unexpected {value!r}")

    def _take(self, mark: str) -> bool:
        there = self._at < len(self._tokens) and self._tokens[self._at] == ("mark", mark)
        self._at += there
        return there


def _range(times: str) -> tuple[int, int | None]:
    least, comma, most = times.partition(",")
    return int(least), (int(most) if most else None) if comma else int(least)


def _characters(written: str) -> list[int]:
    codes = []
    for two, four, eight, escaped, plain in _CHARACTER.findall(written):
        digits = two or four or eight
        codes.append(int(digits, 16) if digits else ord(_ESCAPES.get(escaped, escaped) or plain))
    return codes


def _ranges(written: str) -> tuple[Range, ...]:
    negated = written.startswith("^")
    parts = list(_CHARACTER.finditer(written[negated:]))
    ranges: list[Range] = []
    at = 0
    while at < len(parts):
        low = high = _characters(parts[at][0])[0]
        if at + 2 < len(parts) and parts[at + 1][0] == "-":
            high, at = _characters(parts[at + 2][0])[0], at + 2
        ranges.append((low, high))
        at += 1
    return all_but(ranges) if negated else tuple(ranges)
