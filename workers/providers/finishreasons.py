"""The table of finish reasons: what each vendor's word for the end of an answer means here.

docs/providers.md has the table; its rows are tests.
"""

import re
from dataclasses import dataclass
from enum import IntEnum


class Finish(IntEnum):
    """How an answer ended, the worse the higher: of two that one answer names, the higher counts."""

    OTHER = 0
    """A word that this table does not have, or a call of a tool: an answer if there is text, and none without."""

    STOP = 1
    """The LLM was done."""

    LENGTH = 2
    """A limit of tokens cut the answer."""

    FILTERED = 3
    """A filter or the LLM itself refused: ``content_filtered``."""

    FAILED = 4
    """The provider failed on its way: ``overloaded``."""


@dataclass(frozen=True, slots=True)
class FinishReason:
    """A word, in lower case and without Google's prefix ``FINISH_REASON_``, and who says it."""

    word: str
    finish: Finish
    said_by: str


REASONS = (
    FinishReason("stop", Finish.STOP, "OpenAI and all that follow it, Google"),
    FinishReason("end_turn", Finish.STOP, "Anthropic"),
    FinishReason("stop_sequence", Finish.STOP, "Anthropic"),
    FinishReason("eos", Finish.STOP, "Together"),
    FinishReason("eos_token", Finish.STOP, "Together, TGI"),
    FinishReason("complete", Finish.STOP, "Cohere"),
    FinishReason("length", Finish.LENGTH, "OpenAI and all that follow it"),
    FinishReason("max_tokens", Finish.LENGTH, "Anthropic, Google, Cohere"),
    FinishReason("max_output_tokens", Finish.LENGTH, "OpenAI's Responses behind OpenRouter"),
    FinishReason("model_length", Finish.LENGTH, "Mistral"),
    FinishReason("model_context_window_exceeded", Finish.LENGTH, "Anthropic"),
    FinishReason("compaction", Finish.LENGTH, "Anthropic"),
    FinishReason("error_limit", Finish.LENGTH, "Cohere"),
    FinishReason("max_output", Finish.LENGTH, "MiniMax"),
    FinishReason("max_length", Finish.LENGTH, "gateways"),
    FinishReason("token_limit", Finish.LENGTH, "watsonx"),
    FinishReason("token_limit_reached", Finish.LENGTH, "Azure's SDKs"),
    FinishReason("time_limit", Finish.LENGTH, "watsonx"),
    FinishReason("repetition_truncation", Finish.LENGTH, "Xiaomi"),
    FinishReason("content_filter", Finish.FILTERED, "OpenAI, Azure, DeepSeek"),
    FinishReason("content_filtered", Finish.FILTERED, "Bedrock"),
    FinishReason("guardrail_intervened", Finish.FILTERED, "Bedrock"),
    FinishReason("refusal", Finish.FILTERED, "Anthropic"),
    FinishReason("safety", Finish.FILTERED, "Google"),
    FinishReason("recitation", Finish.FILTERED, "Google"),
    FinishReason("language", Finish.FILTERED, "Google"),
    FinishReason("blocklist", Finish.FILTERED, "Google"),
    FinishReason("prohibited_content", Finish.FILTERED, "Google"),
    FinishReason("spii", Finish.FILTERED, "Google"),
    FinishReason("model_armor", Finish.FILTERED, "Google"),
    FinishReason("image_safety", Finish.FILTERED, "Google"),
    FinishReason("image_prohibited_content", Finish.FILTERED, "Google"),
    FinishReason("image_recitation", Finish.FILTERED, "Google"),
    FinishReason("sensitive", Finish.FILTERED, "Zhipu"),
    FinishReason("error_toxic", Finish.FILTERED, "Cohere"),
    FinishReason("error", Finish.FAILED, "OpenRouter, Together, Mistral, vLLM, Cohere"),
    FinishReason("abort", Finish.FAILED, "vLLM, SGLang"),
    FinishReason("cancelled", Finish.FAILED, "proxies"),
    FinishReason("user_cancel", Finish.FAILED, "Cohere"),
    FinishReason("insufficient_system_resource", Finish.FAILED, "DeepSeek"),
    FinishReason("network_error", Finish.FAILED, "Zhipu"),
    FinishReason("malformed_function_call", Finish.FAILED, "Google"),
    FinishReason("unexpected_tool_call", Finish.FAILED, "Google"),
    FinishReason("too_many_tool_calls", Finish.FAILED, "Google"),
    FinishReason("missing_thought_signature", Finish.FAILED, "Google"),
    FinishReason("malformed_response", Finish.FAILED, "Google"),
    FinishReason("other", Finish.FAILED, "Google"),
    FinishReason("no_image", Finish.FAILED, "Google"),
    FinishReason("image_other", Finish.FAILED, "Google"),
    FinishReason("malformed_model_output", Finish.FAILED, "Bedrock"),
    FinishReason("malformed_tool_use", Finish.FAILED, "Bedrock"),
    FinishReason("tool_calls", Finish.OTHER, "OpenAI and all that follow it"),
    FinishReason("function_call", Finish.OTHER, "OpenAI"),
    FinishReason("tool_use", Finish.OTHER, "Anthropic"),
    FinishReason("pause_turn", Finish.OTHER, "Anthropic"),
)

NOT_SAID = ("", "null", "none", "unspecified", "in_progress")
"""Words that say that the answer goes on: Ollama and SGLang have ``""`` in every chunk, DashScope ``"null"``."""

_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_OF_WORD = {reason.word: reason.finish for reason in REASONS}


def finish_of(reason: object) -> Finish | None:
    """What a finish reason means; None where nothing is said. SGLang's is an object with a ``type``; SDKs of .NET and
    Java write ``contentFilter``."""
    if isinstance(reason, dict):
        reason = reason.get("type")
    if not isinstance(reason, str):
        return None
    word = _CAPITAL.sub("_", reason.strip()).lower().replace("-", "_").removeprefix("finish_reason_")
    return None if word in NOT_SAID else _OF_WORD.get(word, Finish.OTHER)
