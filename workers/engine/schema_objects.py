"""Objects of a JSON Schema as grammar rules: their properties in order, each there or not. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from workers.engine.gbnf import (
    EMPTY,
    Choice,
    Expression,
    Repeat,
    Rules,
    Text,
    all_but,
    choice,
    choose_text,
    concat,
    optional,
)
from workers.engine.json_gbnf import (
    CHARACTER,
    QUOTE,
    SPACE,
    character_in,
    comma_separated,
    in_brackets,
    string,
    text_in_string,
)

_MAX_OPEN = 4000
"""The most alternatives of all places of an object together: after each property, those that may be next."""

_MAX_NAMES_AVOIDED = 1500
"""The most characters of names that the other names of an object are kept apart from."""


@dataclass(frozen=True, slots=True)
class Property:
    """A property of an object; ``value`` is the rule of its value."""

    name: str
    value: Expression
    required: bool


def object_with(properties: Sequence[Property], others: Expression | None, rules: Rules) -> tuple[Expression, bool]:
    """An object with these properties, at least one, in this order and then ``others``, pairs of a key and a value.

    Gives an expression, and whether it lets only objects with every required property through.
    Raises GrammarTooLargeError.
    """
    windows = _windows(properties)
    if sum(end - at for at, end in enumerate(windows)) > _MAX_OPEN:
        return _in_any_order(properties, others), not any(each.required for each in properties)
    number = len(properties)
    after: list[Expression] = [EMPTY] * (number + 1)
    if others is not None:
        more = rules.reserve()
        rules.define(more, optional(concat(Text(","), SPACE, others, more)))
        after[number] = more
    for at in reversed(range(1, number)):
        must = properties[windows[at] - 1].required
        go_on = concat(Text(","), SPACE, _one_of(properties, at, windows[at], after, None if must else others))
        after[at] = rules.add(go_on if must else optional(go_on))
    must = properties[windows[0] - 1].required
    first = _one_of(properties, 0, windows[0], after, None if must else others)
    return in_brackets("{", first if must else optional(first), "}"), True


def other_names(names: Sequence[str], rules: Rules) -> tuple[Expression, bool]:
    """A key, with its quotes, that is none of some names; and whether that is sure.

    Raises GrammarTooLargeError.
    """
    written = [text_in_string(name) for name in names]
    if not names:
        return string(), True
    if sum(map(len, written)) > _MAX_NAMES_AVOIDED or any("\\" in text for text in written):
        return string(), False
    rest = Repeat(CHARACTER, 0, None)
    nodes: dict[str, dict[str, None]] = {}
    for text in written:
        for length in range(len(text)):
            nodes.setdefault(text[:length], {})[text[length]] = None
    rules_of: dict[str, Expression] = {}
    for beginning in sorted(nodes, key=len, reverse=True):
        options = [concat(Text(char), rules_of.get(beginning + char, _longer(rest))) for char in nodes[beginning]]
        strange = character_in(all_but((ord(char), ord(char)) for char in nodes[beginning]))
        if strange is not None:
            options.append(concat(strange, rest))
        if beginning and beginning not in written:
            options.append(EMPTY)
        rules_of[beginning] = rules.add(choice(options))
    start = rules_of[""] if "" in written else choice([rules_of[""], EMPTY])
    return concat(QUOTE, start, QUOTE), True


def _longer(rest: Expression) -> Expression:
    """What follows a whole name so that it is another."""
    return concat(CHARACTER, rest)


def _windows(properties: Sequence[Property]) -> list[int]:
    """For each place, the end of the properties that may be next: behind the next required one."""
    ends = [0] * len(properties)
    end = len(properties)
    for at in reversed(range(len(properties))):
        if properties[at].required:
            end = at + 1
        ends[at] = end
    return ends


def _one_of(
    properties: Sequence[Property], at: int, end: int, after: Sequence[Expression], others: Expression | None
) -> Expression:
    """The next pair, one of the properties ``at`` to ``end`` or another, and what may follow it."""
    named = [
        (text_in_string(each.name) + '":', concat(SPACE, each.value, after[place + 1]))
        for place, each in enumerate(properties[at:end], at)
    ]
    options: list[Expression] = [concat(QUOTE, choose_text(named))] if named else []
    if others is not None:
        options.append(concat(others, after[-1]))
    return choice(options)


def _in_any_order(properties: Sequence[Property], others: Expression | None) -> Expression:
    named = [(text_in_string(each.name) + '":', concat(SPACE, each.value)) for each in properties]
    one: Expression = concat(QUOTE, choose_text(named))
    if others is not None:
        one = Choice((one, others))
    return in_brackets("{", comma_separated(one), "}")
