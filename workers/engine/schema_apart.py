"""Whether no value that a grammar writes for one schema follows another: then ``oneOf`` is ``anyOf``. Pure."""

from collections.abc import Callable, Mapping
from typing import Any

from workers.engine.schema_merge import same
from workers.engine.schema_types import TYPES, constants, types_of

Schema = Mapping[str, Any]  # Any: the caller's JSON
Follow = Callable[[Any], Schema]
"""What a schema says at first sight: its keywords, or those of what it refers to."""

_MAX_DEPTH = 4
_BOUNDS = {"number": ("minimum", "maximum"), "string": ("minLength", "maxLength"), "array": ("minItems", "maxItems")}


def are_apart(schemas: list[Any], follow: Follow) -> bool:
    """Whether each value of one of some schemas follows none of the others, as far as can be told."""
    if len(schemas) > 64:
        return False
    seen = [follow(schema) for schema in schemas]
    return all(_apart(one, other, follow, 0) for one in seen for other in seen if one is not other) and len(
        {id(schema) for schema in seen}
    ) == len(seen)


def _apart(one: Schema, other: Schema, follow: Follow, depth: int) -> bool:
    first, second = _kinds(one), _kinds(other)
    if not first & second:
        return True
    values, others = constants(one), constants(other)
    if values and others:
        return not any(same(value, each) for value in values for each in others)
    if depth >= _MAX_DEPTH or len(first & second) > 1:
        return False
    kind = next(iter(first & second))
    if kind == "object":
        return _objects_apart(one, other, follow, depth)
    return kind in _BOUNDS and (_beyond(one, other, *_BOUNDS[kind]) or _beyond(other, one, *_BOUNDS[kind]))


def _objects_apart(one: Schema, other: Schema, follow: Follow, depth: int) -> bool:
    """Whether the objects that a grammar writes for ``one`` do not follow ``other``."""
    table, others = _table(one), _table(other)
    always, needed = _names(one), _names(other)
    if _is_closed(one) and any(table.get(name, name in always) is False for name in needed):
        return True
    for name in always:
        if others.get(name) is False:
            return True
        if name not in others and other.get("additionalProperties") is False and not other.get("patternProperties"):
            return True
        if name in table and name in others and _apart(follow(table[name]), follow(others[name]), follow, depth + 1):
            return True
    return False


def _is_closed(schema: Schema) -> bool:
    """Whether a grammar writes no other properties than those that are named."""
    others = schema.get("additionalProperties")
    return not schema.get("patternProperties") and (others is False or (others is None and bool(_table(schema))))


def _beyond(one: Schema, other: Schema, least: str, most: str) -> bool:
    low, high = one.get(least), other.get(most)
    numbers = all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in (low, high))
    return numbers and bool(low > high)  # type: ignore[operator]  # they are numbers


def _kinds(schema: Schema) -> set[str]:
    named = types_of(schema) if "type" in schema or constants(schema) else None
    return {"number" if kind == "integer" else kind for kind in named or TYPES}


def _table(schema: Schema) -> dict[str, Any]:
    table = schema.get("properties")
    return table if isinstance(table, dict) else {}


def _names(schema: Schema) -> list[str]:
    names = schema.get("required")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
