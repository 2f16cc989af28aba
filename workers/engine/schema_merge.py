"""Several JSON Schemas that all hold, as one: their keywords side by side. Pure."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

_MEMBERS = frozenset(
    {"properties", "additionalProperties", "patternProperties", "items", "prefixItems", "additionalItems"}
)

ANNOTATIONS = frozenset(
    {
        *("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "nullable"),
        *("$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$comment", "$defs", "definitions", "$vocabulary"),
        *("contentEncoding", "contentMediaType", "contentSchema", "discriminator", "strict"),
    }
)
"""Keywords that say nothing about a value by themselves."""

Schema = dict[str, Any]  # Any: the caller's JSON


def merge_keywords(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[Schema, bool]:
    """Both schemas' keywords as one schema, and whether that says all that both say."""
    merged: Schema = {key: value for key, value in one.items() if key not in _MEMBERS}
    complete = True
    for key, value in other.items():
        if key in _MEMBERS:
            continue
        if key not in merged or merged[key] == value:
            merged[key] = value
        elif key in _JOINED:
            merged[key] = _JOINED[key](merged[key], value)
        else:
            complete = False
    return {**merged, **_members(one, other), **_items(one, other)}, complete


def merge_all(schemas: Iterable[Schema]) -> Schema:
    """What several schemas say at first sight, as one."""
    merged: Schema = {}
    for schema in schemas:
        merged, _ = merge_keywords(merged, schema)
    return merged


def is_impossible(schema: Schema) -> bool:
    """Whether it can be seen at once that no value follows a schema."""
    if schema.get("type") == [] or schema.get("enum") == []:
        return True
    kind, table, names = schema.get("type"), schema.get("properties"), schema.get("required")
    only_objects = kind in ("object", ["object"])
    if not only_objects or not isinstance(names, list):
        return False
    return isinstance(table, dict) and any(table.get(name) is False for name in names if isinstance(name, str))


def both(one: Any, other: Any) -> Any:  # Any: JSON Schemas
    """A schema for what follows both."""
    if one is False or other is False:
        return False
    if one is True or one == other:
        return other
    return one if other is True else {"allOf": [one, other]}


def _members(one: Mapping[str, Any], other: Mapping[str, Any]) -> Schema:
    """What is said of an object's members: a name that one schema declares is an additional one to the other."""
    properties: Schema = {}
    first, second = _table(one, "properties"), _table(other, "properties")
    for name in dict.fromkeys([*first, *second]):
        if name in first and name in second:
            properties[name] = both(first[name], second[name])
        else:
            known, stranger = (first[name], other) if name in first else (second[name], one)
            patterned = "patternProperties" in stranger
            properties[name] = known if patterned else both(known, stranger.get("additionalProperties", True))
    merged: Schema = {"properties": properties} if "properties" in one or "properties" in other else {}
    if "additionalProperties" in one or "additionalProperties" in other:
        additional = (one.get("additionalProperties", True), other.get("additionalProperties", True))
        merged["additionalProperties"] = both(*additional)
    patterns = _table(one, "patternProperties")
    for pattern, member in _table(other, "patternProperties").items():
        patterns = {**patterns, pattern: both(patterns.get(pattern, True), member)}
    return {**merged, "patternProperties": patterns} if patterns else merged


def _items(one: Mapping[str, Any], other: Mapping[str, Any]) -> Schema:
    """What is said of an array's items: without first items of its own, a schema's ``items`` are all of them."""
    (first, rest), (second, others) = first_and_rest(one), first_and_rest(other)
    longest = max(len(first), len(second))
    first += [rest] * (longest - len(first))
    second += [others] * (longest - len(second))
    merged: Schema = {"items": both(rest, others)} if "items" in one or "items" in other else {}
    return {**merged, "prefixItems": [both(*pair) for pair in zip(first, second, strict=True)]} if longest else merged


def first_and_rest(schema: Mapping[str, Any]) -> tuple[list[Any], Any]:
    """The schemas of an array's first items, and that of the rest; until draft 2019-09 a list of ``items`` was them."""
    first, rest = schema.get("prefixItems"), schema.get("items", True)
    if isinstance(rest, list):
        return list(rest), schema.get("additionalItems", True)
    return list(first) if isinstance(first, list) else [], rest


def _table(schema: Mapping[str, Any], key: str) -> Schema:
    table = schema.get(key)
    return table if isinstance(table, dict) else {}


def _types(one: Any, other: Any) -> list[Any]:
    first, second = _listed(one), _listed(other)
    shared = [kind for kind in first if kind in second]
    mixed = ("integer" in first and "number" in second) or ("number" in first and "integer" in second)
    return [*shared, "integer"] if mixed and "integer" not in shared else shared


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _shared_values(one: Any, other: Any) -> Any:
    if not isinstance(one, list) or not isinstance(other, list):
        return one
    return [value for value in one if any(same(value, another) for another in other)]


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; true is not 1."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _union(one: Any, other: Any) -> Any:
    if not isinstance(one, list) or not isinstance(other, list):
        return one
    return list(dict.fromkeys(name for name in (*one, *other) if isinstance(name, str)))


def _extreme(choose: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def join(one: Any, other: Any) -> Any:
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other))
        return choose(one, other) if numbers else one

    return join


_LEAST = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties", "minContains")
_MOST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties", "maxContains")

_JOINED: dict[str, Callable[[Any, Any], Any]] = {
    "type": _types,
    "enum": _shared_values,
    "required": _union,
    "propertyNames": both,
    "not": lambda one, other: {"anyOf": [one, other]},
    "uniqueItems": lambda one, other: bool(one) or bool(other),
    **{key: _extreme(max) for key in _LEAST},
    **{key: _extreme(min) for key in _MOST},
}
