"""``not``, ``if`` and dependencies of a JSON Schema as alternatives that a grammar can say. Pure.

Each function gives alternatives, of which one holds, and whether they say all that the keywords do.
"""

from collections.abc import Mapping
from typing import Any

from workers.engine.schema_merge import ANNOTATIONS
from workers.engine.schema_types import TYPES

Schema = dict[str, Any]  # Any: the caller's JSON
Alternatives = tuple[list[Any], bool]

_MAX_DEPTH = 6


def alternatives_of(schema: Schema) -> list[Alternatives]:
    """Take the conditions out of a schema's keywords, and give each as alternatives."""
    found: list[Alternatives] = []
    if "not" in schema and banned(schema["not"]) is None:
        negated = negate(schema.pop("not"))
        found.append(([True], False) if negated is None else (negated, True))
    condition = schema.pop("if", None)
    then, otherwise = schema.pop("then", True), schema.pop("else", True)
    if condition is not None and (then is not True or otherwise is not True):
        found.append(_conditional(condition, then, otherwise))
    dependencies = {**_table(schema, "dependencies"), **_table(schema, "dependentRequired")}
    for name, needed in {**dependencies, **_table(schema, "dependentSchemas")}.items():
        found.append(_dependency(name, needed))
    for key in ("dependencies", "dependentRequired", "dependentSchemas"):
        schema.pop(key, None)
    return found


def negate(schema: Any, depth: int = 0) -> list[Any] | None:
    """Alternatives of which one holds for what does not follow a schema; None when that cannot be said."""
    if isinstance(schema, bool) or schema == {}:
        return [] if schema is not False else [True]
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return None
    ways: list[Any] = []
    for key, value in schema.items():
        if key in ANNOTATIONS:
            continue
        negated = _negate_keyword(key, value, schema, depth)
        if negated is None:
            return None
        ways += negated
    return ways


def _negate_keyword(  # noqa: C901  # one case a keyword
    key: str, value: Any, schema: Schema, depth: int
) -> list[Any] | None:
    """Alternatives for what does not follow one keyword."""
    match key, value:
        case "type", str() | list():
            named = value if isinstance(value, list) else [value]
            others = [kind for kind in TYPES if kind not in named and not (kind == "integer" and "number" in named)]
            return None if "integer" in named and "number" not in named else [{"type": others}]
        case "const", _:
            return [{"not": {"const": value}}]
        case "enum", list():
            return [{"not": {"enum": value}}]
        case "required", list():
            return [{"type": "object", "properties": {name: False}} for name in value]
        case "properties", dict():
            return _negate_properties(value, depth)
        case "not", _:
            return [value]
        case "anyOf", list():
            return _negate_all(value, depth)
        case "allOf", list():
            parts = [negate(part, depth + 1) for part in value]
            return None if None in parts else [way for part in parts for way in part or []]
        case (("minimum" | "maximum"), (int() | float())) if not isinstance(value, bool):
            opposite = {"minimum": "exclusiveMaximum", "maximum": "exclusiveMinimum"}[key]
            return None if schema.get(_EXCLUSIVE[key]) is True else [{"type": "number", opposite: value}]
        case (("minLength" | "minItems" | "minProperties"), int()) if value > 0:
            return [{"type": _TYPE_OF[key[3:]], "max" + key[3:]: value - 1}]
        case (("maxLength" | "maxItems" | "maxProperties"), int()):
            return [{"type": _TYPE_OF[key[3:]], "min" + key[3:]: value + 1}]
    return None


_EXCLUSIVE = {"minimum": "exclusiveMinimum", "maximum": "exclusiveMaximum"}
_TYPE_OF = {"Length": "string", "Items": "array", "Properties": "object"}


def _negate_properties(table: Schema, depth: int) -> list[Any] | None:
    ways: list[Any] = []
    for name, member in table.items():
        negated = negate(member, depth + 1)
        if negated is None:
            return None
        ways += [{"type": "object", "properties": {name: way}, "required": [name]} for way in negated]
    return ways


def _negate_all(branches: list[Any], depth: int) -> list[Any] | None:
    """What follows none of some schemas: one way of each, all together."""
    together: list[list[Any]] = [[]]
    for branch in branches:
        negated = negate(branch, depth + 1)
        if negated is None or len(together) * len(negated) > 64:
            return None
        together = [[*parts, way] for parts in together for way in negated]
    return [{"allOf": parts} if parts else True for parts in together]


def _conditional(condition: Any, then: Any, otherwise: Any) -> Alternatives:
    negated = negate(condition)
    met = {"allOf": [condition, then]}
    if negated is None:
        return [met, otherwise], False
    return [met, *({"allOf": [way, otherwise]} for way in negated)], True


def _dependency(name: str, needed: Any) -> Alternatives:
    """A property that is not there, or what is needed with it."""
    absent = {"properties": {name: False}}
    if isinstance(needed, list):
        return [absent, {"required": [name, *needed]}], True
    return [absent, {"allOf": [{"required": [name]}, needed]}], True


def banned(schema: Any) -> list[Any] | None:  # Any: a JSON Schema
    """The values that a ``not`` excludes, if it does no more than that."""
    match schema:
        case {"const": value, **more} if not more.keys() - ANNOTATIONS:
            return [value]
        case {"enum": [*values], **more} if not more.keys() - ANNOTATIONS:
            return values
        case {"anyOf": [*parts], **more} if not more.keys() - ANNOTATIONS:
            found = [banned(part) for part in parts]
            return None if None in found else [value for values in found for value in values or []]
    return None


def _table(schema: Mapping[str, Any], key: str) -> Schema:
    table = schema.get(key)
    return table if isinstance(table, dict) else {}
