"""The form of an answer in words, for an LLM that knows no parameter for it."""

from collections.abc import Mapping
from typing import Any

import orjson

Json = Mapping[str, Any]  # Any: a JSON Schema of the caller's


def instruction_of(response_format: Json | None) -> str | None:
    """The sentence that asks for the form; None for text."""
    response_format = response_format or {}
    if response_format.get("type", "text") == "text":
        return None
    form = response_format.get("json_schema")
    schema = form.get("schema") if isinstance(form, dict) else None
    if schema is None:
        return "Answer with one JSON object and nothing else."
    return (
        f"Answer with one JSON value that follows this JSON Schema, and nothing else:\n{orjson.dumps(schema).decode()}"
    )
