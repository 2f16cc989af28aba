"""From OpenAI's ``response_format`` to the grammars that an answer may be sampled by, the tightest first. Pure."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from workers.engine.schema_grammar import LOOSE, SHAPE, USUAL, Grammar, any_json, any_json_object, convert_schema

LIMITS = (USUAL, LOOSE, SHAPE)
MOST_LOOSENED = len(LIMITS)
"""The level of the grammar of any JSON: no schema is too much for it."""


@lru_cache(maxsize=1)
def json_grammar() -> Grammar:
    """Any JSON value."""
    return any_json()


@lru_cache(maxsize=1)
def object_grammar() -> Grammar:
    """Any JSON object."""
    return any_json_object()


def schema_of(response_format: dict[str, Any] | None) -> Any:  # Any: a JSON Schema of the caller's
    """The schema that an answer must follow; None when none is given."""
    if (response_format or {}).get("type") != "json_schema":
        return None
    return ((response_format or {}).get("json_schema") or {}).get("schema", True)


def grammars_of(schema: Any, level: int = 0) -> Iterator[tuple[int, Grammar]]:  # Any: a JSON Schema of the caller's
    """The grammars of a schema from a level on, each with its level; the last is that of any JSON."""
    for at, limits in enumerate(LIMITS):
        if at >= level:
            grammar = convert_schema(schema, limits)
            if grammar is not None:
                yield at, grammar
    yield MOST_LOOSENED, json_grammar()


def grammar_for(response_format: dict[str, Any] | None) -> str | None:  # Any: a JSON Schema of the caller's
    """The tightest grammar of a response format, not tried; None for free text."""
    kind = (response_format or {}).get("type", "text")
    if kind == "json_object":
        return object_grammar().text
    return None if kind == "text" else next(grammars_of(schema_of(response_format)))[1].text
