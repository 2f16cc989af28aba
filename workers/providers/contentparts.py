"""The parts of a message: text, reasoning and refusals in each place that vendors have for them.

The tables are in docs/providers.md. Reasoning is paid for and is not part of the answer. ``<think>`` within a text is
left there: nobody can tell such a mark of a server without a reasoning parser from an answer that speaks of it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Part = Mapping[str, Any]  # Any: a provider's JSON


class Kind(StrEnum):
    """What a part of a message is."""

    TEXT = "text"
    REASONING = "reasoning"
    REFUSAL = "refusal"


@dataclass(frozen=True, slots=True)
class PartType:
    """A ``type`` of a part, the field with its text, and who sends it."""

    name: str
    field: str
    kind: Kind
    said_by: str


PART_TYPES = (
    PartType("text", "text", Kind.TEXT, "Mistral, Anthropic, Databricks, OpenAI's own messages"),
    PartType("output_text", "text", Kind.TEXT, "OpenAI's Responses"),
    PartType("thinking", "thinking", Kind.REASONING, "Mistral (a list of parts), Anthropic (a text)"),
    PartType("reasoning", "summary", Kind.REASONING, "Databricks (a list of parts)"),
    PartType("reasoning", "text", Kind.REASONING, "gateways"),
    PartType("reasoning.text", "text", Kind.REASONING, "OpenRouter"),
    PartType("reasoning.summary", "summary", Kind.REASONING, "OpenRouter"),
    PartType("summary_text", "text", Kind.REASONING, "OpenAI's Responses, Databricks"),
    PartType("refusal", "refusal", Kind.REFUSAL, "OpenAI"),
)


@dataclass(frozen=True, slots=True)
class ReasoningField:
    """A field beside ``content`` that has reasoning, and who has it."""

    name: str
    said_by: str


REASONING_FIELDS = (
    ReasoningField("reasoning_content", "DeepSeek, xAI, Moonshot, Zhipu, vLLM, SGLang, llama-server"),
    ReasoningField("reasoning", "OpenRouter, Groq, Together, Ollama, vLLM"),
    ReasoningField("reasoning_text", "GitHub Copilot"),
    ReasoningField("thinking", "Ollama's models behind gateways"),
    ReasoningField("reasoning_details", "OpenRouter, MiniMax: a list of parts, beside `reasoning` or in its place"),
    ReasoningField("thinking_blocks", "LiteLLM: a list of parts, beside `reasoning_content`"),
)

_MARKS_OF_A_PART = frozenset({"type", "text"})
_DEEPEST = 8
"""Lists within lists that are looked into."""

_REASONING_NAMES = frozenset(field.name for field in REASONING_FIELDS)
_OF_TYPE: dict[str, list[PartType]] = {}
for _type in PART_TYPES:
    _OF_TYPE.setdefault(_type.name, []).append(_type)


def parts_of(message: Part) -> Iterator[tuple[Kind, str]]:
    """The parts of a message or of a piece of one, in the order of its fields; reasoning that is said twice is once."""
    has_reasoning = False
    content_kind = Kind.REASONING if _is_thought(message) else Kind.TEXT
    for name, value in message.items():
        if not value and (name != "content" or value != 0 or isinstance(value, bool)):
            continue
        if name == "content":
            yield from _parts(_written(value), content_kind)
        elif name == "refusal" and isinstance(value, str):
            yield Kind.REFUSAL, value
        elif name in _REASONING_NAMES and not has_reasoning:
            for _, text in _parts(value, Kind.REASONING):
                has_reasoning = True
                yield Kind.REASONING, text


def calls_of(message: Part) -> Iterator[str]:
    """The arguments of the calls of tools in a message: output that is paid for, though nobody asked for it."""
    calls = message.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    for function in (*functions, message.get("function_call")):
        if isinstance(function, dict):
            arguments = function.get("arguments")
            yield arguments if isinstance(arguments, str) and arguments else str(function.get("name") or "tool")


def _written(content: object) -> object:
    """A content, as text where it is the answer's own JSON, which a server parsed; parts have a type or a text."""
    first = content[0] if isinstance(content, list) and content else content
    if isinstance(first, str | list | bool) or (isinstance(first, dict) and not _MARKS_OF_A_PART.isdisjoint(first)):
        return content
    try:
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        return None


def _parts(value: object, kind: Kind, depth: int = 0) -> Iterator[tuple[Kind, str]]:
    """The texts in a text, a part, or a list of either; ``kind`` is that of what has no type of its own."""
    match value:
        case str():
            if value:
                yield kind, value
        case list() if depth < _DEEPEST:
            for member in value:
                yield from _parts(member, kind, depth + 1)
        case dict():
            yield from _typed(value, kind, depth)


def _typed(part: Part, kind: Kind, depth: int) -> Iterator[tuple[Kind, str]]:
    types = _OF_TYPE.get(str(part.get("type") or "text"), [])
    for known in types:
        if value := part.get(known.field):
            inner = known.kind if kind is Kind.TEXT else kind
            if isinstance(value, dict):
                value = value.get("value")  # a text with annotations, as in OpenAI's Assistants
            for _, text in _parts(value, inner, depth + 1) if depth < _DEEPEST else ():
                yield inner, text
            return


def _is_thought(message: Part) -> bool:
    """Whether Google marked the content of a piece as a thought."""
    extra = message.get("extra_content")
    google = extra.get("google") if isinstance(extra, dict) else None
    return isinstance(google, dict) and google.get("thought") is True
