"""GBNF, the grammars that llama.cpp samples by: expressions, rules and their text, bounded by counting. Pure.

Every rule that is added is counted first, in the elements that llama.cpp's parser makes of it: a repetition
``x{0,500}`` is five hundred rules there. Nothing is written out before its count is known to be within the budget.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

MAX_REPETITIONS = 1500
"""llama.cpp refuses 2,000 and more."""

MAX_NESTING = 40
"""How deep groups may nest: llama.cpp's parser recurses into them."""

_MAX_CODE_POINT = 0x10FFFF

Range = tuple[int, int]


class GrammarTooLargeError(Exception):
    """The grammar has more elements than its budget allows."""


@dataclass(frozen=True, slots=True)
class Text:
    """A literal."""

    value: str


@dataclass(frozen=True, slots=True)
class Chars:
    """One character within some ranges of code points, both ends included."""

    ranges: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class Concat:
    """One expression after the other."""

    items: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Any one of some expressions."""

    options: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """An expression ``least`` to ``most`` times; without an upper bound if that is None."""

    item: "Expression"
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Ref:
    """A rule, by its name."""

    name: str


Expression = Text | Chars | Concat | Choice | Repeat | Ref
EMPTY = Text("")


def concat(*items: Expression) -> Expression:
    """One after the other; empty literals are left out and neighbouring literals joined."""
    joined: list[Expression] = []
    for item in items:
        for part in item.items if isinstance(item, Concat) else (item,):
            last = joined[-1] if joined else None
            if isinstance(part, Text) and isinstance(last, Text):
                joined[-1] = Text(last.value + part.value)
            elif part != EMPTY:
                joined.append(part)
    return joined[0] if len(joined) == 1 else Concat(tuple(joined)) if joined else EMPTY


def choice(options: Iterable[Expression]) -> Expression:
    """Any one of them, each only once."""
    distinct = tuple(dict.fromkeys(options))
    return distinct[0] if len(distinct) == 1 else Choice(distinct)


def repeat(item: Expression, least: int, most: int | None) -> Expression:
    """``item`` so many times; a repetition of nothing or of one is that."""
    if most == 0:
        return EMPTY
    return item if (least, most) == (1, 1) else Repeat(item, least, most)


def optional(item: Expression) -> Expression:
    """``item`` or nothing."""
    return Repeat(item, 0, 1)


def choose_text(entries: Sequence[tuple[str, Expression]], max_depth: int = 24) -> Expression:
    """Any one of some texts, each followed by its own expression.

    Texts that begin alike share their beginning, so that few alternatives are open at a time: with thousands of
    alternatives side by side llama.cpp compares each token of the vocabulary with each of them.
    """
    if len(entries) == 1 or max_depth == 0:
        return choice(concat(Text(text), after) for text, after in entries)
    shared = _common_beginning([text for text, _ in entries])
    groups: dict[str, list[tuple[str, Expression]]] = {}
    for text, after in entries:
        rest = text[shared:]
        groups.setdefault(rest[:1], []).append((rest, after))
    options = [
        choice(after for _, after in group) if not first else choose_text(group, max_depth - 1)
        for first, group in groups.items()
    ]
    return concat(Text(entries[0][0][:shared]), choice(options))


def nests(expression: Expression) -> int:
    """How deep groups nest in an expression."""
    match expression:
        case Concat(items) | Choice(items):
            return 1 + max(map(nests, items))
        case Repeat(item, _, _):
            return 1 + nests(item)
    return 0


@dataclass(slots=True)
class Rules:
    """The rules of one grammar, with a budget of elements."""

    budget: int
    spent: int = 0
    rules: dict[str, Expression] = field(default_factory=dict)
    _names: dict[Expression, str] = field(default_factory=dict)

    def spend(self, elements: int) -> None:
        """Count what is about to be built. Raises GrammarTooLargeError."""
        self.spent += elements
        if self.spent > self.budget:
            raise GrammarTooLargeError(f"the grammar has more than {self.budget} elements")

    def reserve(self, name: str = "") -> Ref:
        """A name for a rule that is defined later."""
        self.spend(1)
        name = name or f"r{len(self.rules)}"
        self.rules[name] = EMPTY
        return Ref(name)

    def define(self, rule: Ref, expression: Expression) -> None:
        """Give a reserved rule its expression. Raises GrammarTooLargeError."""
        expression = self._flat(expression)
        self.spend(count_elements(expression))
        self.rules[rule.name] = expression

    def add(self, expression: Expression, name: str = "") -> Expression:
        """An expression as a rule of its own; equal ones share a rule. Raises GrammarTooLargeError."""
        if isinstance(expression, Ref) or expression == EMPTY:
            return expression
        known = self._names.get(expression)
        if known is None:
            rule = self.reserve(name)
            self.define(rule, expression)
            known = self._names[expression] = rule.name
        return Ref(known)

    def write(self, root: str) -> tuple[str, frozenset[str]]:
        """The grammar's text, from the rules that the root needs, and their names."""
        needed, queue = {root: None}, [root]
        while queue:
            for name in _references(self.rules[queue.pop()]):
                if name not in needed:
                    needed[name] = None
                    queue.append(name)
        lines = [f"root ::= {root}", *(f"{name} ::= {_written(self.rules[name])}" for name in needed)]
        return "\n".join(lines) + "\n", frozenset(needed)

    def has_end(self, root: str) -> bool:
        """Whether some text follows a rule: one that always needs itself again has none."""
        ending: set[str] = set()
        found = -1
        while found < len(ending):
            found = len(ending)
            for name in reversed(self.rules):
                if name not in ending and _ends(self.rules[name], ending):
                    ending.add(name)
        return root in ending

    def most_ways(self, names: Iterable[str]) -> int:
        """The most ways to go on that one of some rules offers before it writes a character, and after nothing.

        llama.cpp follows all of them at each step. Raises RecursionError when a rule begins with itself.
        """
        known: dict[str, tuple[int, int]] = {}
        return max(sum(self._ways(Ref(name), known)) for name in names)

    def _ways(self, expression: Expression, known: dict[str, tuple[int, int]]) -> tuple[int, int]:
        """In how many ways an expression begins with a character, and in how many it is nothing."""
        match expression:
            case Text(value):
                return (1, 0) if value else (0, 1)
            case Ref(name):
                if name not in known:
                    known[name] = self._ways(self.rules[name], known)
                return known[name]
            case Concat(items):
                begins, empty = 0, 1
                for item in items:
                    if not empty:
                        break
                    more, nothing = self._ways(item, known)
                    begins, empty = begins + empty * more, empty * nothing
                return begins, empty
            case Choice(options):
                each = [self._ways(option, known) for option in options]
                return sum(begins for begins, _ in each), sum(empty for _, empty in each)
            case Repeat(item, least, _):
                begins, empty = self._ways(item, known)
                return begins, empty if least else empty + 1
        return 1, 0

    def _flat(self, expression: Expression) -> Expression:
        """The expression with every repeated group as a rule: a repetition copies a reference and no group."""
        match expression:
            case Concat(items):
                return Concat(tuple(self._flat(item) for item in items))
            case Choice(options):
                return Choice(tuple(self._flat(option) for option in options))
            case Repeat(item, least, most) if not isinstance(item, Chars | Ref):
                return Repeat(self.add(item), least, most)
        return expression


def count_elements(expression: Expression) -> int:
    """How many elements llama.cpp's parser makes of an expression, about."""
    match expression:
        case Text(value):
            return 1 + len(value)
        case Chars(ranges):
            return 1 + 2 * len(ranges)
        case Concat(items) | Choice(items):
            return 2 + sum(map(count_elements, items))
        case Repeat(item, least, most):
            times = least + 1 if most is None else max(1, most)
            return 2 + times * (3 + count_elements(item))
    return 1


def without(ranges: Iterable[Range], removed: Iterable[Range]) -> tuple[Range, ...]:
    """Ranges of code points less others."""
    rest = list(ranges)
    for low, high in removed:
        cut: list[Range] = []
        for first, last in rest:
            if last < low or first > high:
                cut.append((first, last))
                continue
            if first < low:
                cut.append((first, low - 1))
            if last > high:
                cut.append((high + 1, last))
        rest = cut
    return tuple(sorted(rest))


def all_but(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Every code point that is none of these."""
    return without([(0, _MAX_CODE_POINT)], ranges)


def _ends(expression: Expression, ending: set[str]) -> bool:
    """Whether some text follows an expression, by the rules of which that is known."""
    match expression:
        case Ref(name):
            return name in ending
        case Concat(items):
            return all(_ends(item, ending) for item in items)
        case Choice(options):
            return any(_ends(option, ending) for option in options)
        case Repeat(item, least, _):
            return least == 0 or _ends(item, ending)
    return True


def _common_beginning(texts: Sequence[str]) -> int:
    first, last = min(texts), max(texts)
    length = 0
    while length < min(len(first), len(last)) and first[length] == last[length]:
        length += 1
    return length


def _references(expression: Expression) -> list[str]:
    match expression:
        case Ref(name):
            return [name]
        case Concat(items) | Choice(items):
            return [name for item in items for name in _references(item)]
        case Repeat(item, _, _):
            return _references(item)
    return []


def _written(expression: Expression, *, nested: bool = False) -> str:
    match expression:
        case Text(value):
            return '"' + "".join(map(_literal_character, value)) + '"'
        case Chars(ranges):
            return "[" + "".join(map(_written_range, ranges)) + "]"
        case Ref(name):
            return name
        case Repeat(item, least, most):
            return _written(item, nested=True) + _times(least, most)
        case Concat(items):
            text = " ".join(_written(item, nested=True) for item in items)
            return f"({text})" if nested else text
        case Choice(options):
            text = " | ".join(_written(option, nested=not isinstance(option, Concat)) for option in options)
            return f"({text})" if nested else text


def _times(least: int, most: int | None) -> str:
    match (least, most):
        case (0, 1):
            return "?"
        case (0, None):
            return "*"
        case (1, None):
            return "+"
        case (_, None):
            return f"{{{least},}}"
    return f"{{{least}}}" if least == most else f"{{{least},{most}}}"


def _literal_character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if " " <= character <= "~" else _escaped(ord(character))


def _written_range(bounds: Range) -> str:
    low, high = bounds
    return _class_character(low) if low == high else f"{_class_character(low)}-{_class_character(high)}"


def _class_character(code: int) -> str:
    plain = chr(code).isascii() and chr(code).isalnum()
    return chr(code) if plain else _escaped(code)


def _escaped(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
