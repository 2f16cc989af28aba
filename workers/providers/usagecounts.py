"""What a provider says that a call used: one form for the many places and names; the table is in docs/providers.md.

Counts are tokens. A number that cannot be a count (below zero, above 2^31, no number) is nothing said.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Any

Usage = Mapping[str, Any]  # Any: a provider's JSON

_MOST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens as a provider counted them, None where it did not; ``cached`` are among ``input``, ``reasoning`` among
    ``output``."""

    input: int | None = None
    output: int | None = None
    cached: int = 0
    reasoning: int = 0


@dataclass(frozen=True, slots=True)
class UsageField:
    """A place of a count, as a path into the usage object, and who has it there."""

    path: tuple[str, ...]
    said_by: str


INPUT = (
    UsageField(("prompt_tokens",), "OpenAI and all that follow it"),
    UsageField(("input_tokens",), "Anthropic, Bedrock, OpenAI's Responses"),
    UsageField(("inputTokens",), "Bedrock's Converse behind gateways"),
    UsageField(("promptTokens",), "gateways on the Vercel AI SDK"),
)
OUTPUT = (
    UsageField(("completion_tokens",), "OpenAI and all that follow it"),
    UsageField(("output_tokens",), "Anthropic, Bedrock, OpenAI's Responses"),
    UsageField(("outputTokens",), "Bedrock's Converse behind gateways"),
    UsageField(("completionTokens",), "gateways on the Vercel AI SDK"),
)
CACHED = (
    UsageField(("prompt_tokens_details", "cached_tokens"), "OpenAI, Azure, xAI, Groq, OpenRouter, vLLM"),
    UsageField(("input_tokens_details", "cached_tokens"), "OpenAI's Responses"),
    UsageField(("prompt_cache_hit_tokens",), "DeepSeek"),
    UsageField(("cached_tokens",), "Moonshot, Together"),
    UsageField(("cache_read_input_tokens",), "Anthropic, LiteLLM, Databricks"),
)
REASONING = (
    UsageField(("completion_tokens_details", "reasoning_tokens"), "OpenAI, Azure, xAI, DeepSeek, OpenRouter, Groq"),
    UsageField(("output_tokens_details", "reasoning_tokens"), "OpenAI's Responses"),
    UsageField(("reasoning_tokens",), "Together, Perplexity, LM Studio"),
)
USAGE_PLACES = (
    UsageField(("usage",), "all: the last chunk, or each chunk with the counts so far"),
    UsageField(("x_groq", "usage"), "Groq, in the last chunk of a stream"),
    UsageField(("choices[0]", "usage"), "Moonshot, in the last chunk of a stream"),
)
"""Where the usage object itself is."""

ANTHROPIC_INPUT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
"""Anthropic's three parts of a prompt: what its cache gave or took is not among ``input_tokens``."""


def count_of(value: object) -> int | None:
    """A count of tokens, from a number or a text with one; fractions, which some gateways compute, are rounded up."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, float):
        value = ceil(value) if isfinite(value) else None
    return value if isinstance(value, int) and 0 <= value <= _MOST else None


def counts_of(usage: Usage) -> Counts:
    """The counts of a usage object of OpenAI's form.

    What stands beside the sums is recognised by arithmetic: reasoning beside ``completion_tokens`` (xAI, Google)
    makes ``total_tokens`` larger than the sum of both counts, and so do cached tokens beside ``prompt_tokens``.
    """
    if "prompt_tokens" not in usage and "cache_read_input_tokens" in usage:
        return anthropic_counts_of(usage)
    prompt, completion, total = _first(usage, INPUT), _first(usage, OUTPUT), count_of(usage.get("total_tokens"))
    cached, reasoning = _first(usage, CACHED) or 0, _first(usage, REASONING) or 0
    if total:
        if not prompt and not completion:
            return Counts()
        if not prompt and completion is not None and total >= completion:
            prompt = total - completion
        elif completion is None and prompt is not None and total >= prompt:
            completion = total - prompt
    if prompt is None or completion is None:
        return Counts(prompt, completion, min(cached, prompt or 0), min(reasoning, completion or 0))
    return _with_what_stands_beside(Counts(prompt, completion, cached, reasoning), total or 0, usage)


def anthropic_counts_of(usage: Usage) -> Counts:
    """The counts of a usage object of Anthropic's form, in which the cache's tokens stand beside ``input_tokens``."""
    parts = [count_of(usage.get(name)) for name in ANTHROPIC_INPUT]
    cached = parts[2] or 0
    prompt = None if parts[0] is None else sum(part or 0 for part in parts)
    reasoning = _first(usage, REASONING) or 0
    output = count_of(usage.get("output_tokens"))
    return Counts(prompt, output, cached if prompt else 0, min(reasoning, output or 0))


def _with_what_stands_beside(said: Counts, total: int, usage: Usage) -> Counts:
    """The counts with what is beside the sums added to them."""
    prompt, completion = said.input or 0, said.output or 0
    beyond = total - prompt - completion
    from_cache = said.cached + (count_of(usage.get("cache_creation_input_tokens")) or 0)
    is_beside = said.cached and beyond != said.reasoning and beyond in (from_cache, from_cache + said.reasoning)
    if said.cached > prompt or is_beside:
        prompt += from_cache
        beyond = total - prompt - completion
    if beyond > 0:
        completion += beyond
        return Counts(prompt, completion, said.cached, min(max(said.reasoning, beyond), completion))
    if said.reasoning > completion:
        completion += said.reasoning
    return Counts(prompt, completion, said.cached, said.reasoning)


def _first(usage: Usage, fields: Iterable[UsageField]) -> int | None:
    """The first count above zero of some places, or a zero that one of them has."""
    found: int | None = None
    for field in fields:
        value: object = usage
        for name in field.path:
            value = value.get(name) if isinstance(value, dict) else None
        count = count_of(value)
        if count:
            return count
        found = count if found is None else found
    return found
