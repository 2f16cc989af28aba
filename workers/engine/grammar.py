"""From OpenAI's ``response_format`` to a grammar that llama.cpp samples by (GBNF)."""

from functools import lru_cache
from typing import Any

import orjson
from llama_cpp.llama_grammar import JSON_GBNF, json_schema_to_gbnf

from models.errors import FailureCode
from workers.engine.errors import EngineError

_LONGEST = 200_000


def grammar_for(response_format: dict[str, Any] | None) -> str | None:  # Any: a JSON Schema of the caller's
    """The grammar for a response format; None for free text. Raises EngineError when a schema has none."""
    kind = (response_format or {}).get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return JSON_GBNF
    schema = (response_format or {}).get("json_schema", {}).get("schema", {})
    return _from_schema(orjson.dumps(schema).decode())


@lru_cache(maxsize=256)
def _from_schema(schema: str) -> str:
    try:
        grammar: str = json_schema_to_gbnf(schema)
    except Exception as error:  # the converter raises whatever a hostile schema provokes
        message = f"the JSON Schema cannot be turned into a grammar: {type(error).__name__}: {error}"
        raise EngineError(FailureCode.PROVIDER_REJECTED, message) from error
    if len(grammar) > _LONGEST:
        raise EngineError(FailureCode.PROVIDER_REJECTED, "the JSON Schema makes too large a grammar")
    return grammar
