"""Which types of values a JSON Schema speaks of, and which values it spells out. Pure."""

from collections.abc import Callable, Mapping
from typing import Any

from workers.engine.schema_merge import same

_OBJECT = frozenset({"properties", "required", "additionalProperties", "patternProperties", "propertyNames"})
_OBJECT |= {"minProperties", "maxProperties"}
_ARRAY = frozenset({"items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains"})
_STRING = frozenset({"minLength", "maxLength", "pattern", "format"})
_NUMBER = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
KEYWORDS_OF = {"object": _OBJECT, "array": _ARRAY, "string": _STRING, "number": _NUMBER}
TYPES = ("null", "boolean", "integer", "number", "string", "object", "array")


def types_of(schema: Mapping[str, Any]) -> list[str] | None:
    """The types that a value may have; where none is named, those of which the schema says something; None for any."""
    named = schema.get("type")
    if named is not None:
        return [kind for kind in (named if isinstance(named, list) else [named]) if kind in TYPES]
    values = constants(schema)
    if values:
        return [kind for kind in TYPES if any(is_of_type(value, kind) for value in values)]
    meant = [kind for kind, keywords in KEYWORDS_OF.items() if schema.keys() & keywords]
    return meant or None


def constants(schema: Mapping[str, Any]) -> list[Any]:
    """The values that a schema spells out."""
    values = schema.get("enum")
    values = values if isinstance(values, list) else []
    if "const" not in schema:
        return values
    constant = schema["const"]
    return [constant] if "enum" not in schema or any(same(constant, value) for value in values) else []


_PYTHON_TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: not isinstance(value, bool) and isinstance(value, int | float) and value == value // 1,
    "number": lambda value: not isinstance(value, bool) and isinstance(value, int | float),
    "string": lambda value: isinstance(value, str),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
}


def is_of_type(value: Any, kind: str) -> bool:
    return _PYTHON_TYPES[kind](value)
