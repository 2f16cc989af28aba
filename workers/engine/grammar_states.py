"""Where a text is within its grammar, and how it ends soonest: the states of a grammar, built as they are needed. Pure.

A state is the set of all places in the grammar at which the text so far may be: each place is an expression and what
follows it. Places, states and the ways between them are built once and shared, so that one more character is a
look-up. Each knows the fewest tokens that end the text from there, as if every literal had tokens of its own; texts
that cross literals may take fewer (:mod:`workers.engine.ending`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from workers.engine.gbnf import Chars, Choice, Concat, Expression, Range, Ref, Repeat, Text
from workers.engine.pieces import Pieces

_MAX_PLACES = 1_000
"""The most places at which a text may be at once; llama.cpp follows as many."""

_MAX_BUILT = 30_000
"""After so many places, sharing begins afresh: what nobody uses any more is then freed."""

_PREFERRED = (0x30, 0x61, 0x20)
"""The characters of a class that are written when any will do: a digit, a letter, a space."""

INFINITE: Final = float("inf")


class TooManyPlacesError(Exception):
    """The grammar is too ambiguous to follow."""


@dataclass(eq=False, slots=True)
class Literal:
    """A text from one of its characters on; ``costs`` are the tokens of the rest from each of them."""

    text: str
    at: int
    costs: list[float]
    rest: "Literal | None" = None

    @property
    def cost(self) -> float:
        return self.costs[self.at]


@dataclass(eq=False, slots=True)
class CharClass:
    ranges: tuple[Range, ...]
    char: str
    cost: float


@dataclass(eq=False, slots=True)
class Sequence:
    items: "tuple[Node, ...]"
    cost: float = INFINITE


@dataclass(eq=False, slots=True)
class Alternatives:
    options: "tuple[Node, ...]"
    cost: float = INFINITE


@dataclass(eq=False, slots=True)
class Times:
    item: "Node"
    least: int
    most: int | None
    cost: float = INFINITE
    again: "Times | None" = None


@dataclass(eq=False, slots=True)
class Rule:
    target: "Node | None" = None
    cost: float = INFINITE


Node = Literal | CharClass | Sequence | Alternatives | Times | Rule


@dataclass(eq=False, slots=True)
class Place:
    """An expression, and the place after it; the last place has none."""

    node: Node | None
    next: "Place | None"
    cost: float
    opened: "tuple[tuple[Place, ...], bool] | None" = None


@dataclass(eq=False, slots=True)
class State:
    """All places at which a text may be; ``ends`` when it may end here, ``cost`` the fewest tokens to an end."""

    places: tuple[Place, ...]
    ends: bool
    cost: float
    after: "dict[str, State | None]" = field(default_factory=dict)
    after_tokens: "dict[int, State | None]" = field(default_factory=dict)
    plan: list[int] | None = None
    """The tokens of the shortest end, once they were asked for."""

    @property
    def complete(self) -> bool:
        """Whether the text is an answer, and nothing can follow."""
        return self.ends and not self.places


class GrammarStates:
    """The states of one grammar for one vocabulary. Any thread may ask, one at a time.

    Raises ValueError when the grammar lacks a rule or has no end, TooManyPlacesError.
    """

    def __init__(self, rules: Mapping[str, Expression], pieces: Pieces) -> None:
        self._pieces = pieces
        self._rules = {name: Rule() for name in rules}
        self._nodes: list[Sequence | Alternatives | Times | Rule] = []
        for name, expression in rules.items():
            self._rules[name].target = self._compile(expression)
            self._nodes.append(self._rules[name])
        self._settle_costs()
        self._end = Place(None, None, 0.0)
        self._places: dict[tuple[Node, Place], Place] = {}
        self._states: dict[tuple[tuple[Place, ...], bool], State] = {}
        self.start = self._state([self._place(self._rules["root"], self._end)])
        if self.start.cost == INFINITE:
            raise ValueError("the grammar has no end")

    def after(self, state: State, char: str) -> State | None:
        """The state after one more character; None when the grammar does not allow it."""
        if char not in state.after:
            code = ord(char)
            reached = []
            for place in state.places:
                match place.node:
                    case Literal(text, at) as literal if text[at] == char:
                        rest, following = self._rest(literal), _following(place)
                        reached.append(following if rest is None else self._place(rest, following))
                    case CharClass(ranges) if any(low <= code <= high for low, high in ranges):
                        reached.append(_following(place))
            state.after[char] = self._state(reached) if reached else None
        return state.after[char]

    def shortest(self, state: State) -> str:
        """What ends a text from a state with the fewest tokens, literal by literal."""
        if state.ends:
            return ""
        written: list[str] = []
        place = min(state.places, key=lambda each: each.cost)
        todo: list[Node] = []
        while place.node is not None:
            todo.append(place.node)
            while todo:
                _write(todo.pop(), written, todo)
            place = _following(place)
        return "".join(written)

    def _compile(self, expression: Expression) -> Node:
        made: Sequence | Alternatives | Times
        match expression:
            case Text(value):
                counts = self._pieces.counts(value.encode())
                at = [0]
                for char in value:
                    at.append(at[-1] + len(char.encode()))
                return Literal(value, 0, [counts[place] for place in at])
            case Chars(ranges):
                codes = [code for code in _PREFERRED if any(low <= code <= high for low, high in ranges)]
                char = chr(codes[0] if codes else min(ranges)[0])
                return CharClass(ranges, char, self._pieces.counts(char.encode())[0])
            case Ref(name):
                if name not in self._rules:
                    raise ValueError(f"there is no rule {name!r}")
                return self._rules[name]
            case Concat(items):
                made = Sequence(tuple(map(self._compile, items)))
            case Choice(options):
                made = Alternatives(tuple(map(self._compile, options)))
            case Repeat(item, least, most):
                made = Times(self._compile(item), least, most)
        self._nodes.append(made)
        return made

    def _settle_costs(self) -> None:
        """Rules refer to each other, so costs are lowered until none changes."""
        changed = True
        while changed:
            changed = False
            for node in reversed(self._nodes):
                cost = _cost(node)
                if cost < node.cost:
                    node.cost, changed = cost, True

    def _place(self, node: Node, following: Place) -> Place:
        key = (node, following)
        place = self._places.get(key)
        if place is None:
            if len(self._places) > _MAX_BUILT:
                self._places.clear()
                self._states.clear()
            place = self._places[key] = Place(node, following, node.cost + following.cost)
        return place

    def _state(self, reached: list[Place]) -> State:
        """The state of some places, each followed to where a character is read."""
        opened = [self._open(place) for place in reached]
        ends = any(each for _, each in opened)
        places = (
            tuple(dict.fromkeys(place for each, _ in opened for place in each)) if len(opened) > 1 else opened[0][0]
        )
        state = self._states.get((places, ends))
        if state is None:
            if len(places) > _MAX_PLACES:
                raise TooManyPlacesError
            cost = 0.0 if ends else min((place.cost for place in places), default=INFINITE)
            state = self._states[places, ends] = State(places, ends, cost)
        return state

    def _open(self, place: Place) -> tuple[tuple[Place, ...], bool]:
        """The places from one on where a character is read, and whether the text may end there."""
        if place.opened is not None:
            return place.opened
        reading: dict[Place, None] = {}
        ends = False
        seen: set[Place] = set()
        todo = [place]
        while todo:
            each = todo.pop()
            if each in seen:
                continue
            seen.add(each)
            if len(seen) > 20 * _MAX_PLACES:
                raise TooManyPlacesError
            if each.node is None:
                ends = True
            elif isinstance(each.node, CharClass) or (isinstance(each.node, Literal) and each.node.text):
                reading[each] = None
            else:
                todo += self._within(each.node, _following(each))
        place.opened = tuple(reading), ends
        return place.opened

    def _within(self, node: Node, following: Place) -> list[Place]:
        """The places that a place stands for."""
        match node:
            case Sequence(items):
                for item in reversed(items):
                    following = self._place(item, following)
                return [following]
            case Alternatives(options):
                return [self._place(option, following) for option in options]
            case Rule(target) if target is not None:
                return [self._place(target, following)]
            case Times(item, least, most):
                again = self._again(node)
                more = (
                    []
                    if most == 0
                    else [self._place(item, following if again is None else self._place(again, following))]
                )
                return more if least else [following, *more]
        return [following]  # an empty literal

    def _again(self, times: Times) -> Times | None:
        """What is left of a repetition after one of it."""
        if times.most is None and times.least == 0:
            return times
        if times.most == 1:
            return None
        if times.again is None:
            most = None if times.most is None else times.most - 1
            times.again = Times(times.item, max(0, times.least - 1), most)
            times.again.cost = _cost(times.again)
        return times.again

    def _rest(self, literal: Literal) -> Literal | None:
        """What is left of a literal after its first character."""
        if literal.rest is None and literal.at + 1 < len(literal.text):
            literal.rest = Literal(literal.text, literal.at + 1, literal.costs)
        return literal.rest


def _following(place: Place) -> Place:
    assert place.next is not None
    return place.next


def _cost(node: Node) -> float:
    match node:
        case Sequence(items):
            return sum(item.cost for item in items)
        case Alternatives(options):
            return min(option.cost for option in options)
        case Times(item, least, _):
            return least * item.cost if least else 0.0
        case Rule(target) if target is not None:
            return target.cost
    return node.cost


def _write(node: Node, written: list[str], todo: list[Node]) -> None:
    """Write an expression as shortly as it can be; what it consists of is put before what is to do."""
    match node:
        case Literal(text, at):
            written.append(text[at:])
        case CharClass(_, char, _):
            written.append(char)
        case Sequence(items):
            todo += reversed(items)
        case Alternatives(options):
            todo.append(min(options, key=lambda option: option.cost))
        case Times(item, least, _):
            todo += [item] * least
        case Rule(target) if target is not None:
            todo.append(target)
