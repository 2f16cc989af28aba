"""JSON Schemas at random, from the keywords that people use."""

from collections.abc import Callable
from random import Random
from typing import Any

Schema = dict[str, Any]  # Any: JSON
_VALUES = [1, 1.5, True, False, None, "a", "b", "ab", [1], {"a": 1}, 0, "é\n"]
_PATTERNS = [
    r"^\d{2,3}$",
    "a+b",
    r"^(x|yz)*$",
    "^[^a-z]{1,3}$",
    r"\w\s\W",
    "^.$",
    r"^[\w.-]+@[a-z]{2}$",
    "^$|^a",
    r"^\D\S$",
]
_FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "email", "uri"]
_DEEPEST = 4


def random_schema(seed: int) -> Schema:
    """A schema with three definitions that others may refer to."""
    dice = Random(seed)
    schema = _schema(dice, 0)
    return {**schema, "$defs": {name: _schema(dice, 2) for name in "XYZ"}}


def _schema(dice: Random, depth: int) -> Schema:
    makers = _SHALLOW if depth >= _DEEPEST else _SHALLOW + _DEEP
    return dice.choice(makers)(dice, depth)


def _some(dice: Random, share: float, **keywords: Any) -> Schema:  # Any: JSON
    """Some of these keywords, each with this probability."""
    return {key: value for key, value in keywords.items() if dice.random() < share}


def _string(dice: Random, _depth: int) -> Schema:
    bounds = _some(dice, 0.4, minLength=dice.randint(0, 4), maxLength=dice.randint(0, 8))
    return {"type": "string", **bounds, **_some(dice, 0.2, format=dice.choice(_FORMATS))}


def _pattern(dice: Random, _depth: int) -> Schema:
    return {"type": "string", "pattern": dice.choice(_PATTERNS)}


def _number(dice: Random, _depth: int) -> Schema:
    def bound() -> float:
        return dice.choice([dice.randint(-30, 30), dice.randint(-3000, 3000), dice.randint(-9, 9) + 0.5])

    bounds = _some(dice, 0.3, minimum=bound(), maximum=bound(), exclusiveMinimum=bound(), exclusiveMaximum=bound())
    step = _some(dice, 0.15, multipleOf=dice.choice([1, 2, 5, 0.1, 0.01, 10]))
    return {"type": dice.choice(["integer", "number"]), **bounds, **step}


def _enumeration(dice: Random, _depth: int) -> Schema:
    kinds = _some(dice, 0.3, type=dice.choice(["string", "integer", "boolean", "number"]))
    return {"enum": dice.sample(_VALUES, dice.randint(1, 5)), **kinds}


def _types(dice: Random, _depth: int) -> Schema:
    kinds = ["string", "integer", "null", "boolean", "array", "object", "number"]
    return {"type": dice.sample(kinds, dice.randint(1, 3)), **_some(dice, 0.3, maxLength=3, minimum=3)}


def _reference(dice: Random, _depth: int) -> Schema:
    return {"$ref": f"#/$defs/{dice.choice('XYZ')}", **_some(dice, 0.2, minLength=2)}


def _untyped(dice: Random, _depth: int) -> Schema:
    return dice.choice([{}, {"title": "anything"}, {"minimum": 1, "maxLength": 3, "minItems": 1}])


def _object(dice: Random, depth: int) -> Schema:
    names = dice.sample(["a", "ab", "abc", "b", "é", 'q"x', "id"], dice.randint(1, 4))
    required = [name for name in names if dice.random() < 0.5] + (["zz"] if dice.random() < 0.1 else [])
    others = _some(
        dice,
        0.15,
        additionalProperties=dice.choice([True, False, _schema(dice, depth + 1)]),
        minProperties=dice.randint(0, 2),
        maxProperties=dice.randint(1, 5),
        patternProperties={"^x": _schema(dice, depth + 1)},
    )
    members = {name: _schema(dice, depth + 1) for name in names}
    return {"type": "object", "properties": members, "required": required, **others}


def _map(dice: Random, depth: int) -> Schema:
    names = {"pattern": "^[a-c]{1,3}$"}
    bounds = _some(dice, 0.3, minProperties=dice.randint(0, 2), maxProperties=dice.randint(0, 3), propertyNames=names)
    return {"type": "object", "additionalProperties": _schema(dice, depth + 1), **bounds}


def _array(dice: Random, depth: int) -> Schema:
    bounds = _some(dice, 0.3, minItems=dice.randint(0, 2), maxItems=dice.randint(0, 4), uniqueItems=True)
    return {"type": "array", "items": _schema(dice, depth + 1), **bounds}


def _tuple(dice: Random, depth: int) -> Schema:
    first = [_schema(dice, depth + 1) for _ in range(dice.randint(1, 3))]
    rest = dice.choice([False, True, _schema(dice, depth + 1)])
    bounds = _some(dice, 0.5, items=rest, minItems=dice.randint(0, 4), maxItems=dice.randint(0, 4))
    return {"type": "array", "prefixItems": first, **bounds}


def _joined(dice: Random, depth: int) -> Schema:
    parts = [_schema(dice, depth + 1) for _ in range(dice.randint(1, 3))]
    beside = _schema(dice, depth + 1) if dice.random() < 0.3 else {}
    return {**beside, dice.choice(["anyOf", "oneOf", "allOf"]): parts}


_SHALLOW: list[Callable[[Random, int], Schema]] = [
    _string,
    _number,
    _enumeration,
    _types,
    _reference,
    _pattern,
    _untyped,
]
_DEEP: list[Callable[[Random, int], Schema]] = [_object, _object, _map, _array, _tuple, _joined, _joined]
