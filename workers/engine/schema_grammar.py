"""From a JSON Schema to a grammar (GBNF), bounded by counting. Pure.

What a grammar says exactly is converted. What it cannot say is loosened, and the check of every answer
(:mod:`workers.structured`) decides: no valid schema is refused here. A grammar writes an object's properties in the
order of the schema, and others than these only where the schema speaks of them. That leaves some valid answers out;
what matters is that every answer that the grammar lets through is valid, which :attr:`Grammar.exact` tells.

Members of objects and arrays are converted later, from a queue, so that neither deep nor recursive schemas are
recursion here. What is converted at once is a value in the same place: a reference, an alternative. A reference back to
such a value, before anything is written, would have no end and is loosened.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from workers.engine.gbnf import (
    EMPTY,
    MAX_NESTING,
    Expression,
    GrammarTooLargeError,
    Ref,
    Rules,
    Text,
    choice,
    concat,
    count_elements,
    nests,
    optional,
)
from workers.engine.json_gbnf import (
    SPACE,
    any_array,
    any_object,
    any_value,
    comma_separated,
    define_basics,
    in_brackets,
    pair,
    string,
)
from workers.engine.pattern import convert_pattern
from workers.engine.schema_apart import are_apart
from workers.engine.schema_logic import alternatives_of, banned
from workers.engine.schema_merge import (
    ANNOTATIONS,
    Schema,
    first_and_rest,
    is_impossible,
    merge_all,
    merge_keywords,
    same,
)
from workers.engine.schema_objects import Property, object_with, other_names
from workers.engine.schema_references import References
from workers.engine.schema_scalars import count_of, enumerated, number_of, string_of
from workers.engine.schema_types import KEYWORDS_OF, TYPES, constants, is_of_type, types_of

_CONVERTED = frozenset(
    {"type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf", "$dynamicRef", "$recursiveRef"}
).union(*KEYWORDS_OF.values())
_LEFT_TO_THE_CHECK = frozenset(
    {
        *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems"),
        *("dependencies", "dependentRequired", "dependentSchemas"),
        *("unevaluatedProperties", "unevaluatedItems"),
    }
)
_REFERENCES = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})
_JOINING = _REFERENCES | {"allOf", "anyOf", "oneOf", "not", "if"}
_JOINING |= {"dependencies", "dependentRequired", "dependentSchemas"}
_MAX_AT_ONCE = 30
"""How many references and alternatives may lead from one to the next before anything is written."""

_MAX_WAYS = 1_000
"""The most ways to go on that any rule may offer before it writes a character."""

_MAX_PROBES = 30
_PROBED_ELEMENTS = 200

_MAX_JOINED = 500
"""How many schemas may be joined into one."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar in GBNF. ``exact``: every answer that it lets through follows the schema."""

    text: str
    exact: bool
    probes: tuple[str, ...] = ()
    """Rules whose cost is worth measuring each by itself, such as those of patterns."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a grammar may come to; what is beyond is loosened. ``elements`` is the budget of the whole."""

    elements: int
    depth: int
    values: int
    repetitions: int
    alternatives: int
    patterns: bool


USUAL = Limits(elements=250_000, depth=40, values=8_000, repetitions=1_500, alternatives=256, patterns=True)
LOOSE = Limits(elements=20_000, depth=16, values=200, repetitions=50, alternatives=32, patterns=False)
SHAPE = Limits(elements=5_000, depth=3, values=50, repetitions=5, alternatives=8, patterns=False)


def any_json() -> Grammar:
    """The grammar of any JSON value that nests to a bounded depth."""
    rules = _new_rules(SHAPE)
    return Grammar(rules.write(any_value(rules).name)[0], exact=False)


def any_json_object() -> Grammar:
    """The grammar of any JSON object that nests to a bounded depth."""
    rules = _new_rules(SHAPE)
    return Grammar(rules.write(any_object(rules).name)[0], exact=True)


def convert_schema(schema: Any, limits: Limits = USUAL) -> Grammar | None:  # Any: a JSON Schema of the caller's
    """The grammar of a schema; None when it is beyond the limits as a whole."""
    try:
        return _Conversion(schema, limits).convert()
    except (GrammarTooLargeError, RecursionError):
        return None


def _new_rules(limits: Limits) -> Rules:
    rules = Rules(limits.elements)
    define_basics(rules)
    return rules


@dataclass(slots=True)
class _Value:
    """A schema that has a rule; it is ``open`` while it is converted."""

    rule: Ref
    schema: Schema
    depth: int
    open: bool = False
    done: bool = False


class _Conversion:
    def __init__(self, schema: Any, limits: Limits) -> None:
        self._root = schema
        self._references = References(schema)
        self._limits = limits
        self._rules = _new_rules(limits)
        self._exact = True
        self._values: dict[int | str, _Value] = {}
        self._queue: deque[_Value] = deque()
        self._at_once = 0
        self._probes: dict[str, None] = {}

    def convert(self) -> Grammar:
        root = self._value(self._root, 0)
        while self._queue:
            value = self._queue.popleft()
            if not value.done:
                self._define(value)
        start = self._rules.reserve()
        self._rules.define(start, root)
        text, written = self._rules.write(start.name)
        if not self._rules.has_end(start.name):
            raise GrammarTooLargeError("no text is short enough to follow it")
        if self._rules.most_ways(written) > _MAX_WAYS:
            raise GrammarTooLargeError("too many alternatives are open at a time")
        probes = tuple(name for name in self._probes if name in written)
        return Grammar(text, self._exact, probes[:_MAX_PROBES])

    def _loose(self, expression: Expression) -> Expression:
        """An expression that lets more through than the schema."""
        self._exact = False
        return expression

    def _any(self) -> Expression:
        return any_value(self._rules)

    def _value(self, schema: Any, depth: int) -> Expression:
        """The rule of a value whose place is here."""
        if schema is True or schema == {}:
            return self._any()
        if not isinstance(schema, dict) or self._at_once >= _MAX_AT_ONCE:
            return self._loose(self._any())
        value = self._known(schema, depth)
        if value.open:
            return self._loose(self._any())
        if not value.done:
            self._define(value)
        return value.rule

    def _member(self, schema: Any, depth: int) -> Expression:
        """The rule of a value within an object or array, defined later."""
        if schema is True or schema == {}:
            return self._any()
        if not isinstance(schema, dict):
            return self._loose(self._any())
        value = self._known(schema, depth)
        if not value.open and not value.done:
            self._queue.append(value)
        return value.rule

    def _known(self, schema: Schema, depth: int) -> _Value:
        key: int | str = id(schema)
        value = self._values.get(key)
        if value is None:
            value = self._values[key] = _Value(self._rules.reserve(), schema, depth)
        return value

    def _define(self, value: _Value) -> None:
        value.open, self._at_once = True, self._at_once + 1
        expression = self._expression(value.schema, value.depth)
        if nests(expression) > MAX_NESTING:
            expression = self._loose(self._any())
        self._rules.define(value.rule, expression)
        if count_elements(expression) > _PROBED_ELEMENTS:
            self._probes[value.rule.name] = None
        value.open, value.done, self._at_once = False, True, self._at_once - 1

    def _expression(self, schema: Schema, depth: int) -> Expression:
        said = {key: value for key, value in schema.items() if key not in ANNOTATIONS and key in _MEANT}
        if len(said) == 1:
            target = self._single(said, schema)
            if target is not None:
                return self._value(target, depth)
        for key in ("anyOf", "oneOf"):
            branches = said.get(key)
            if len(said) == 1 and isinstance(branches, list) and branches:
                return self._one_of(branches, depth, exclusive=key == "oneOf")
        if not said.keys() & _JOINING:
            return self._plain(said, depth)
        return self._joined(said, depth)

    def _single(self, said: Schema, schema: Schema) -> Schema | None:
        """The schema that one keyword refers to, if that is all it does."""
        match said:
            case {"$ref": str(reference)}:
                return self._references.resolve(reference, schema)
            case {"allOf": [dict(only)]} | {"anyOf": [dict(only)]} | {"oneOf": [dict(only)]}:
                return only
        return None

    def _one_of(self, branches: Sequence[Any], depth: int, *, exclusive: bool) -> Expression:
        possible = [branch for branch in branches if branch is not False]
        if not possible or len(possible) > self._limits.alternatives:
            return self._loose(self._any())
        if exclusive and not self._are_apart(possible):
            self._exact = False
        return choice([self._value(branch, depth) for branch in possible])

    def _are_apart(self, branches: Sequence[Any]) -> bool:
        return are_apart(list(branches), self._followed)

    def _followed(self, schema: Any) -> Schema:
        """A schema, or what it refers to and nothing else."""
        for _ in range(_MAX_AT_ONCE):
            if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
                break
            schema = self._references.resolve(schema["$ref"], schema)
        return schema if isinstance(schema, dict) else {"enum": []} if schema is False else {}

    def _joined(self, schema: Schema, depth: int) -> Expression:
        """A schema of which several parts hold at once."""
        plain, choices = self._parts(schema)
        if plain is None:
            return self._loose(self._any())
        combinations = 1
        for branches in choices:
            combinations *= len(branches)
        while choices and combinations > self._limits.alternatives:
            self._exact = False
            combinations //= len(choices.pop())
        if not choices:
            return self._plain(plain, depth)
        options = []
        for chosen in product(*choices):
            self._rules.spend(len(plain) + len(chosen))
            together = merge_all(self._at_first_sight([plain, *chosen]))
            if not is_impossible(together):
                options.append(self._value(self._interned({"allOf": [plain, *chosen]}), depth))
        return choice(options) if options else self._loose(self._any())

    def _at_first_sight(self, schemas: Sequence[Any]) -> list[Schema]:
        """Schemas that hold at once, and those of their references and joins that are seen without looking far."""
        seen: list[Schema] = []
        queue = deque(schemas)
        while queue and len(seen) < _MAX_AT_ONCE:
            schema = self._followed(queue.popleft())
            parts = schema.get("allOf")
            queue += parts if isinstance(parts, list) else []
            seen.append({key: value for key, value in schema.items() if key in _CONVERTED and key not in _JOINING})
        return seen

    def _parts(self, schema: Schema) -> tuple[Schema | None, list[list[Any]]]:
        """All that holds at once: the plain keywords as one schema, and the alternatives that are still to choose."""
        plain: Schema | None = {}
        choices: list[list[Any]] = []
        queue: deque[Any] = deque([schema])
        seen: set[int] = set()
        while queue and plain is not None:
            part = queue.popleft()
            if id(part) in seen or part is True:
                continue
            seen.add(id(part))
            self._rules.spend(1)
            if not isinstance(part, dict) or len(seen) > _MAX_JOINED:
                plain = None
                break
            said = {key: value for key, value in part.items() if key in _MEANT and key not in ANNOTATIONS}
            queue += self._beside(said, part)
            for branches, complete in alternatives_of(said):
                choices.append(branches)
                self._exact &= complete
            for key in ("anyOf", "oneOf"):
                branches = said.pop(key, None)
                if isinstance(branches, list) and branches:
                    choices.append(branches)
                    self._exact &= key == "anyOf" or self._are_apart(branches)
            self._rules.spend(sum(len(value) for value in said.values() if isinstance(value, dict | list)))
            plain, complete = merge_keywords(plain, said)
            self._exact &= complete
        return plain, choices

    def _beside(self, said: Schema, part: Schema) -> list[Any]:
        """Take the schemas that hold besides out of a schema's keywords."""
        found: list[Any] = []
        for key in _REFERENCES & said.keys():
            reference = said.pop(key)
            target = self._references.resolve(reference, part) if isinstance(reference, str) else None
            self._exact &= target is not None and key == "$ref"
            found += [] if target is None else [target]
        parts = said.pop("allOf", None)
        return found + (parts if isinstance(parts, list) else [])

    def _interned(self, schema: Schema) -> Schema:
        """The same schema for the same content, so that recursion through joined schemas comes back to a rule."""
        content = repr(schema)
        self._rules.spend(len(content) // 16)
        value = self._values.get(content)
        if value is None:
            value = self._values[content] = self._known(schema, 0)
        return value.schema

    def _plain(self, schema: Schema, depth: int) -> Expression:
        """A schema without references and alternatives."""
        schema = dict(schema)
        excluded = banned(schema.pop("not", None)) or []
        if any(self._matters(key, schema[key]) for key in schema.keys() & _LEFT_TO_THE_CHECK):
            self._exact = False
        if "enum" in schema or "const" in schema:
            return self._enumerated(schema, depth, excluded)
        if excluded:
            return self._all_but(schema, excluded, depth)
        types = types_of(schema)
        if types is None:
            return self._any()
        if not types:
            return self._loose(self._any())
        if "number" in types and "integer" in types:
            types.remove("integer")
        return choice([self._of_type(kind, schema, depth) for kind in types])

    def _matters(self, key: str, value: Any) -> bool:
        harmless = {"uniqueItems": False, "unevaluatedItems": True, "unevaluatedProperties": True}
        return key not in ("then", "else") and not (key in harmless and value is harmless[key])

    def _all_but(self, schema: Schema, excluded: Sequence[Any], depth: int) -> Expression:
        """The values of a schema without some; those of the types that can be spelled out are left out here."""
        named = types_of(schema) or [kind for kind in TYPES if kind != "integer"]
        left = [kind for kind in named if not (kind == "null" and None in excluded)]
        rest = [value for value in excluded if value is not None]
        self._exact &= not any(is_of_type(value, kind) for value in rest for kind in left)
        return self._plain({**schema, "type": left}, depth) if left else self._loose(self._any())

    def _enumerated(self, schema: Schema, depth: int, excluded: Sequence[Any]) -> Expression:
        values = [value for value in constants(schema) if not any(same(value, other) for other in excluded)]
        types = types_of(schema) if "type" in schema else None
        if types is not None:
            values = [value for value in values if any(is_of_type(value, kind) for kind in types)]
        if any(schema.keys() & keywords for keywords in KEYWORDS_OF.values()):
            self._exact = False
        expression, exact = enumerated(values, self._rules, self._limits.values)
        self._exact &= exact
        if expression is not None:
            return expression
        if values and all(isinstance(value, str) for value in values):
            return string()
        return self._plain({"type": types}, depth) if types else self._any()

    def _of_type(self, kind: str, schema: Schema, depth: int) -> Expression:
        match kind:
            case "null":
                return Text("null")
            case "boolean":
                return choice([Text("true"), Text("false")])
            case "integer" | "number":
                expression, exact = number_of(schema, whole=kind == "integer")
            case "string":
                expression, exact = self._string(schema)
            case _:
                return self._composite(kind, schema, depth)
        self._exact &= exact
        rule = self._rules.add(expression)
        if "pattern" in schema and isinstance(rule, Ref):
            self._probes[rule.name] = None
        return rule

    def _string(self, schema: Mapping[str, Any]) -> tuple[Expression, bool]:
        limits = self._limits
        return string_of(schema, self._rules, repetitions=limits.repetitions, patterns=limits.patterns)

    def _composite(self, kind: str, schema: Schema, depth: int) -> Expression:
        bare = not schema.keys() & (KEYWORDS_OF[kind] | _LEFT_TO_THE_CHECK)
        if bare or depth >= self._limits.depth:
            self._exact &= bare
            return any_object(self._rules) if kind == "object" else any_array(self._rules)
        return self._object(schema, depth) if kind == "object" else self._array(schema, depth)

    def _object(self, schema: Schema, depth: int) -> Expression:
        table, named = schema.get("properties"), schema.get("required")
        table = table if isinstance(table, dict) else {}
        required = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
        self._rules.spend(2 * (len(table) + len(required)))
        others = self._others(schema)
        asked = set(required)
        declared = {name: member for name, member in table.items() if member is not False or name in asked}
        for name in required:
            self._exact &= name in declared or others is not False
            declared.setdefault(name, others if isinstance(others, dict) else True)
        self._count_properties(schema, declared, asked, others)
        properties = [
            Property(name, self._member(member, depth + 1), name in asked) for name, member in declared.items()
        ]
        if not properties:
            return self._map(schema, others, depth)
        pairs = self._other_pairs(schema, table, others, depth)
        expression, complete = object_with(properties, pairs, self._rules)
        self._exact &= complete
        return expression

    def _others(self, schema: Schema) -> Any:  # Any: a JSON Schema
        """What an object's other members follow; False when there are none. Where nothing is said of them there are
        only the properties, if there are any."""
        others = schema.get("additionalProperties")
        if others is None:
            return not (schema.get("properties") or schema.get("patternProperties"))
        return others

    def _count_properties(self, schema: Schema, declared: Schema, required: set[str], others: Any) -> None:
        """Note what the numbers of properties ask for beyond what the properties themselves do."""
        least, most = count_of(schema, "minProperties"), count_of(schema, "maxProperties")
        if declared and least is not None and least > len(required):
            self._exact = False
        endless = others is not False or bool(schema.get("patternProperties"))
        if declared and most is not None and (endless or most < len(declared)):
            self._exact = False

    def _map(self, schema: Schema, others: Any, depth: int) -> Expression:
        """An object whose keys are the answer's own."""
        pairs = self._other_pairs(schema, {}, others, depth)
        least, most = count_of(schema, "minProperties") or 0, count_of(schema, "maxProperties")
        least, most = self._within_repetitions(least, most)
        self._exact &= least < 2  # keys may be the same
        if pairs is None or most == 0:
            self._exact &= least == 0
            return in_brackets("{", EMPTY, "}")
        return in_brackets("{", comma_separated(self._rules.add(pairs), least, most), "}")

    def _other_pairs(self, schema: Schema, table: Schema, others: Any, depth: int) -> Expression | None:
        """The pairs of keys and values that an object has besides its properties; None when there are none."""
        patterns = schema.get("patternProperties")
        names = schema.get("propertyNames")
        options: list[Expression] = []
        patterns = patterns if isinstance(patterns, dict) else {}
        for pattern, member in patterns.items():
            self._exact &= not table and patterns.keys() == {pattern} and others is False  # else a key may follow two
            content = convert_pattern(pattern, self._rules) if self._limits.patterns else None
            key = string() if content is None else concat(Text('"'), content.expression, Text('"'))
            self._exact &= content is not None
            options.append(pair(self._rules.add(key), self._member(member, depth + 1)))
        if others is not False:
            options.append(pair(self._rules.add(self._other_key(names, table)), self._member(others, depth + 1)))
        elif names is not None:
            self._exact = False
        return self._rules.add(choice(options)) if options else None

    def _other_key(self, names: Any, table: Schema) -> Expression:
        if isinstance(names, dict):
            plain, choices = self._parts(names)
            if plain is not None and not choices and not table:
                return self._key_of(plain)
            self._exact = False
        key, apart = other_names(list(table), self._rules)
        self._exact &= apart
        return key

    def _key_of(self, schema: Schema) -> Expression:
        if "enum" in schema or "const" in schema:
            texts = [value for value in constants(schema) if isinstance(value, str)]
            expression, exact = enumerated(texts, self._rules, self._limits.values)
        else:
            expression, exact = self._string(schema)
        self._exact &= exact and not schema.keys() & _LEFT_TO_THE_CHECK
        return string() if expression is None else expression

    def _within_repetitions(self, least: int, most: int | None) -> tuple[int, int | None]:
        if most is not None and least > most:
            self._exact = False
            return 0, None
        if least > self._limits.repetitions:
            self._exact, least = False, self._limits.repetitions and 1
        if most is not None and most > self._limits.repetitions:
            self._exact, most = False, None
        return least, most

    def _array(self, schema: Schema, depth: int) -> Expression:
        first, rest = first_and_rest(schema)
        least, most = count_of(schema, "minItems") or 0, count_of(schema, "maxItems")
        if first:
            return self._tuple(first, rest, least, most, depth)
        if "contains" in schema:
            least = max(least, 1)
        least, most = self._within_repetitions(least, most)
        if rest is False or most == 0:
            self._exact &= least == 0
            return in_brackets("[", EMPTY, "]")
        return in_brackets("[", comma_separated(self._member(rest, depth + 1), least, most), "]")

    def _tuple(self, first: Sequence[Any], rest: Any, least: int, most: int | None, depth: int) -> Expression:
        """An array whose first items have schemas of their own."""
        self._rules.spend(len(first))
        first = first[: len(first) if most is None else most]
        beyond = None if most is None else most - len(first)
        fewest, beyond = self._within_repetitions(max(0, least - len(first)), beyond)
        if rest is False or beyond == 0:
            self._exact &= fewest == 0
            after: Expression = EMPTY
        else:
            more = comma_separated(self._member(rest, depth + 1), max(1, fewest), beyond)
            after = concat(Text(","), SPACE, more)
            after = self._rules.add(after if fewest else optional(after))
        for at in reversed(range(len(first))):
            comma = concat(Text(","), SPACE) if at else EMPTY
            item = concat(comma, self._member(first[at], depth + 1), after)
            after = self._rules.add(item if at < least else optional(item))
        return in_brackets("[", after, "]")


_MEANT = _CONVERTED | _LEFT_TO_THE_CHECK | {"additionalItems"}
