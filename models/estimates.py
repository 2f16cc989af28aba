"""The most that an attempt can use, for what is reserved before it and for what is booked when nobody tells."""

from collections.abc import Mapping
from typing import Any

import orjson

from models.pricing import Usage
from models.storable import storable_count
from models.tokens import REPAIR_OVERHEAD, most_tokens


def most_of_answer(prompt_tokens: int, max_tokens: int, *, structured: bool) -> tuple[int, int]:
    """The most input and output tokens of an attempt.

    One in a form (``response_format``) may take a second call, which shows the LLM its first answer.
    """
    if structured:
        return 2 * prompt_tokens + max_tokens + REPAIR_OVERHEAD, 2 * max_tokens
    return prompt_tokens, max_tokens


def worst_usage(request: Mapping[str, Any]) -> Usage:  # Any: the request as the API stored it
    """The most that an attempt at a stored request can use, marked as estimated."""
    if "input" in request:
        return Usage(storable_count(most_tokens(request["input"])), 0, estimated=True)
    texts = [message["content"] for message in request["messages"]]
    form = request.get("response_format") or {}
    structured = form.get("type", "text") != "text"
    if structured:
        texts.append(orjson.dumps(form).decode())
    most_in, most_out = most_of_answer(most_tokens(texts), request["max_tokens"], structured=structured)
    return Usage(storable_count(most_in), storable_count(most_out), estimated=True)
