"""Whether an answer is what the official client's own types say: no coercion, and no field of theirs left out."""

import json
import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

ABSENT = {
    "ChatCompletion.metadata": "of stored completions",
    "ChatCompletion.moderation": "of moderated completions",
    "ChatCompletionChunk.moderation": "of moderated completions",
    "ChatCompletionChunk.obfuscation": "against who listens to encrypted streams; needs no client",
    "ChatCompletionMessage.annotations": "of web searches",
    "ChatCompletionMessage.audio": "of audio",
    "ChatCompletionMessage.function_call": "of tools",
    "ChatCompletionMessage.tool_calls": "of tools",
    "ChoiceDelta.audio": "of audio",
    "ChoiceDelta.function_call": "of tools",
    "ChoiceDelta.tool_calls": "of tools",
    "ChoiceDelta.content": "in some chunks only",
    "ChoiceDelta.refusal": "in the first chunk only",
    "ChoiceDelta.role": "in the first chunk only",
    "ChatCompletionChunk.usage": "where it was asked for",
    "CompletionTokensDetails.accepted_prediction_tokens": "of predicted outputs",
    "CompletionTokensDetails.audio_tokens": "of audio",
    "CompletionTokensDetails.rejected_prediction_tokens": "of predicted outputs",
    "CompletionTokensDetails.text_tokens": "of audio and images",
    "PromptTokensDetails.audio_tokens": "of audio",
    "PromptTokensDetails.cache_write_tokens": "no provider's price is by it here",
    "PromptTokensDetails.image_tokens": "of images",
    "PromptTokensDetails.text_tokens": "of audio and images",
    "Model.shutdown_date": "the operator's catalogue has none",
}
"""Optional fields of the client's types that an answer need not have, each with why. A field that a newer client knows
and that is neither sent nor here fails the tests with its name."""


def check(kind: Any, document: object) -> None:  # Any: a type of the client's, maybe generic
    """Fails where a document is not of a type of the client's, or lacks a field that is not in ABSENT."""
    parsed = kind.model_validate_json(json.dumps(document), strict=True)
    missing = [field for field in _missing(type(parsed), document) if field not in ABSENT]
    assert not missing, missing


def _missing(kind: type[BaseModel], document: object) -> Iterator[str]:
    assert isinstance(document, dict)
    for name, field in kind.model_fields.items():
        if name not in document:
            yield f"{kind.__name__.partition('[')[0]}.{name}"
        else:
            for inner, value in _nested(field.annotation, document[name]):
                yield from _missing(inner, value)


def _nested(annotation: Any, value: object) -> Iterator[tuple[type[BaseModel], object]]:  # Any: an annotation
    """The models in a field's type, each with the value that is of it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if isinstance(value, dict):
            yield annotation, value
    elif get_origin(annotation) in (Union, types.UnionType):
        for each in get_args(annotation):
            yield from _nested(each, value)
    elif isinstance(value, list):
        for each in get_args(annotation):
            for item in value:
                yield from _nested(each, item)
