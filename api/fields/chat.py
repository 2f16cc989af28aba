"""The rows of a chat completion's fields, for every way in: chat completions, jobs, lines of batch files, uploads."""

from collections.abc import Iterable, Mapping
from enum import StrEnum

from api.fields.table import Field, Table, ignored, refused, table_of, used


class Surface(StrEnum):
    """A way in for a request."""

    CHAT = "POST /v1/chat/completions"
    JOB = "POST /v1/jobs"
    LINE = "a line of a batch file"
    FORM = "a form of POST /v1/batches/upload"


_LATER = "This version does not support"
_CACHE = "A mark for a provider's cache, which changes the price at most."
_REASONING = "The reasoning behind an earlier answer; LLMs are shown the answer alone."
_NO_TOOLS = f"{_LATER} tools; leave it out."
_NO_LOGPROBS = f"{_LATER} log probabilities; leave it out."
_NOT_A_TOOL = "It is about tools, and there are none."

_ANSWER = (
    used("model", "An LLM's name, a tier's name, or `auto`."),
    used("max_tokens", "256 if neither it nor `max_completion_tokens` is sent."),
    used("max_completion_tokens", "The newer name of `max_tokens`."),
    used("temperature"),
    used("top_p"),
    used("frequency_penalty"),
    used("presence_penalty"),
    used(
        "stop",
        "A string, or 1 to 4 of them; an empty one or an empty list is taken for absent.",
        neutral=([], "", [""]),
    ),
    used("seed"),
    used("user", "For attribution and budgets; an empty one is taken for absent.", neutral=("",)),
    used("metadata", "Kept with the job."),
    refused("n", "There is one answer to a request; send it as often as you want answers.", neutral=(1,)),
    refused("logprobs", _NO_LOGPROBS, neutral=(False,)),
    refused("top_logprobs", _NO_LOGPROBS, neutral=(0,)),
    refused("logit_bias", f"{_LATER} logit_bias; leave it out.", neutral=({},)),
    refused("modalities", 'Answers are text; leave it out, or send ["text"].', neutral=(["text"], [])),
    refused("audio", "Answers are text; leave it out."),
    refused("reasoning_effort", f"{_LATER} reasoning_effort; leave it out, or choose another LLM."),
    refused("verbosity", f"{_LATER} verbosity; leave it out, or say it in the prompt.", neutral=("medium",)),
    refused("web_search_options", f"{_LATER} web search; leave it out."),
    refused("moderation", f"{_LATER} moderation; leave it out."),
    ignored("store", "Every job is kept: `GET /v1/jobs/<id>`."),
    ignored("prediction", "It makes an answer faster at most, never another one."),
    ignored("safety_identifier", "OpenAI's own; send `user` for attribution."),
    ignored("prompt_cache_key", _CACHE),
    ignored("prompt_cache_options", _CACHE),
    ignored("prompt_cache_retention", _CACHE),
    refused(
        "service_tier", "Send `priority` instead: high, normal or low.", neutral=("auto", "default", "standard_only")
    ),
    used("stream", "The answer as it is made."),
    used("stream_options", "Where nothing streams it is ignored."),
    used("stream_options.include_usage", "A last chunk has what was used."),
    ignored("stream_options.include_obfuscation", "Padding against eavesdroppers; the text is the same without."),
)

_TOOLS = (
    refused("tools", _NO_TOOLS, neutral=([],)),
    refused("tool_choice", _NO_TOOLS, neutral=("none", "auto")),
    ignored("parallel_tool_calls", _NOT_A_TOOL),
    refused("functions", _NO_TOOLS, neutral=([],)),
    refused("function_call", _NO_TOOLS, neutral=("none", "auto")),
)

_FORMAT = (
    used("response_format"),
    used("response_format.type"),
    used("response_format.type=text"),
    used("response_format.type=json_object"),
    used("response_format.type=json_schema"),
    used("response_format.json_schema"),
    used("response_format.json_schema.name", "`answer` if it is left out."),
    used("response_format.json_schema.description"),
    used("response_format.json_schema.schema", "Kept as it is, its nulls too.", verbatim=True),
    used("response_format.json_schema.strict", "Answers follow their schema with or without it."),
    used(
        "response_format.schema",
        "The schema, beside `type` instead of in `json_schema`.",
        verbatim=True,
        by="Together, Anyscale, llama-server",
    ),
    used("response_format.name", "With `response_format.schema`.", by="the Responses API"),
    used("response_format.description", "With `response_format.schema`.", by="the Responses API"),
    used("response_format.strict", "With `response_format.schema`.", by="the Responses API"),
)

_MESSAGES = (
    used("messages"),
    used("messages[].role"),
    used("messages[].role=system"),
    used("messages[].role=developer", "As `system` where the provider does not know it."),
    used("messages[].role=user"),
    used("messages[].role=assistant"),
    refused("messages[].role=tool", f"{_LATER} the results of tools; leave these messages out."),
    refused("messages[].role=function", f"{_LATER} the results of functions; leave these messages out."),
    used("messages[].content", "A string, or a list of text parts, which are joined."),
    ignored("messages[].name", "LLMs are not shown it; write it into the text if it matters."),
    used("messages[].refusal", "The text of an assistant's turn that has no content; else ignored."),
    refused("messages[].audio", "Send the text that was spoken, as the content."),
    refused("messages[].tool_calls", f"{_LATER} tools; leave turns with tool calls out.", neutral=([],)),
    refused("messages[].function_call", f"{_LATER} functions; leave turns with function calls out."),
    refused("messages[].tool_call_id", f"{_LATER} the results of tools; leave these messages out."),
)

_PARTS = (
    used("messages[].content[].type"),
    used("messages[].content[].type=text"),
    used("messages[].content[].type=refusal"),
    used("messages[].content[].type=input_text", "As `text`.", by="the Responses API"),
    used("messages[].content[].type=output_text", "As `text`.", by="the Responses API"),
    refused("messages[].content[].type=image_url", f"{_LATER} images; send text parts."),
    refused("messages[].content[].type=input_audio", f"{_LATER} audio; send text parts."),
    refused("messages[].content[].type=file", f"{_LATER} files; send their text."),
    refused("messages[].content[].type=image", f"{_LATER} images; send text parts.", by="Anthropic"),
    refused("messages[].content[].type=input_image", f"{_LATER} images; send text parts.", by="the Responses API"),
    refused("messages[].content[].type=input_file", f"{_LATER} files; send their text.", by="the Responses API"),
    refused("messages[].content[].type=tool_use", f"{_LATER} tools; leave these parts out.", by="Anthropic"),
    refused("messages[].content[].type=tool_result", f"{_LATER} tools; leave these parts out.", by="Anthropic"),
    ignored("messages[].content[].type=thinking", _REASONING, by="Anthropic, Mistral"),
    ignored("messages[].content[].type=redacted_thinking", _REASONING, by="Anthropic"),
    ignored("messages[].content[].type=reasoning", _REASONING, by="the Vercel AI SDK"),
    used("messages[].content[].text"),
    used("messages[].content[].refusal"),
    refused("messages[].content[].image_url", f"{_LATER} images; send text parts."),
    refused("messages[].content[].input_audio", f"{_LATER} audio; send text parts."),
    refused("messages[].content[].file", f"{_LATER} files; send their text."),
    ignored("messages[].content[].prompt_cache_breakpoint", _CACHE),
    ignored("messages[].content[].cache_control", _CACHE, by="OpenRouter, LiteLLM"),
    ignored("messages[].content[].annotations", "Sources of an earlier answer.", by="the Responses API"),
    ignored("messages[].content[].logprobs", "Of an earlier answer.", by="the Responses API"),
    ignored("messages[].content[].id", "A client's own name of the part.", by="LangChain"),
)

_REPLAYED = (
    ignored("messages[].annotations", "Sources of an earlier answer; its text has them.", by="OpenAI's answers"),
    ignored("messages[].parsed", "The content, parsed; the content is there.", by="`client.chat.completions.parse`"),
    ignored("messages[].reasoning_content", _REASONING, by="DeepSeek, vLLM, LiteLLM"),
    ignored("messages[].reasoning", _REASONING, by="OpenRouter, Groq, vLLM, Ollama"),
    ignored("messages[].reasoning_details", _REASONING, by="OpenRouter"),
    ignored("messages[].reasoning_text", _REASONING, by="GitHub Copilot"),
    ignored("messages[].reasoning_opaque", _REASONING, by="GitHub Copilot"),
    ignored("messages[].reasoning_signature", _REASONING, by="Anthropic, by way of proxies"),
    ignored("messages[].thinking", _REASONING, by="Ollama"),
    ignored("messages[].thinking_blocks", _REASONING, by="LiteLLM"),
    ignored("messages[].provider_specific_fields", "What LiteLLM notes of an answer.", by="LiteLLM"),
    ignored("messages[].cache_control", _CACHE, by="LiteLLM, OpenRouter"),
    ignored("messages[].id", "A client's own name of the message.", by="LangChain, the Vercel AI SDK"),
    ignored("messages[].executed_tools", "What Groq's own tools did for an earlier answer.", by="Groq"),
    ignored("messages[].context", "Sources of an earlier answer; its text has them.", by="Azure"),
    ignored("messages[].channel", "Which of its channels an earlier answer came from.", by="gpt-oss"),
    ignored("messages[].weight", "A mark for training.", by="OpenAI's fine-tuning files"),
    refused(
        "messages[].prefix",
        "An answer does not continue a turn that was started; leave it out.",
        neutral=(False,),
        by="Mistral, DeepSeek",
    ),
    refused(
        "messages[].partial",
        "An answer does not continue a turn that was started; leave it out.",
        neutral=(False,),
        by="Qwen",
    ),
    refused("messages[].images", f"{_LATER} images; leave it out.", neutral=([],), by="Ollama"),
)

_SCHEMA = "Send `response_format` with type json_schema instead."
_THINKING = f"{_LATER} switching reasoning on or off; leave it out, or choose another LLM."
_RENAMED = "Headrace has no such sampling; leave it out."

_DIALECTS = (
    ignored("cache_control", _CACHE, by="Anthropic, OpenRouter"),
    ignored("usage", "Usage is always told.", by="OpenRouter"),
    refused("include_reasoning", "Reasoning is not shown; leave it out.", neutral=(False,), by="OpenRouter, vLLM"),
    used(
        "top_k",
        "Not known to every provider; -1, which is vLLM's word for none, is taken for absent.",
        neutral=(-1,),
        by="vLLM",
    ),
    refused(
        "extra_body",
        "Send its fields beside the others; OpenAI's client does so with its argument `extra_body`.",
        neutral=({},),
    ),
    refused("json_schema", _SCHEMA, by="llama-server"),
    refused("format", _SCHEMA, by="Ollama"),
    refused("grammar", _SCHEMA, by="llama-server"),
    refused("structured_outputs", _SCHEMA, by="vLLM"),
    refused("guided_json", _SCHEMA, by="vLLM"),
    refused("guided_regex", _SCHEMA, by="vLLM"),
    refused("guided_choice", _SCHEMA, by="vLLM"),
    refused("guided_grammar", _SCHEMA, by="vLLM"),
    refused(
        "repetition_penalty", f"{_RENAMED[:-1]}, or send `frequency_penalty`.", neutral=(1, 1.0), by="vLLM, Together"
    ),
    refused("repeat_penalty", f"{_RENAMED[:-1]}, or send `frequency_penalty`.", neutral=(1, 1.0), by="llama-server"),
    refused("min_tokens", "Headrace has no such setting; leave it out.", neutral=(0,), by="vLLM"),
    refused("ignore_eos", "Headrace has no such setting; leave it out.", neutral=(False,), by="vLLM"),
    refused("skip_special_tokens", "Headrace has no such setting; leave it out.", neutral=(True,), by="vLLM"),
    refused("use_beam_search", "Headrace has no such setting; leave it out.", neutral=(False,), by="vLLM"),
    refused("length_penalty", "Headrace has no such setting; leave it out.", neutral=(1, 1.0), by="vLLM"),
    refused("early_stopping", "Headrace has no such setting; leave it out.", neutral=(False,), by="vLLM"),
    refused("safe_prompt", "Headrace has no such setting; leave it out.", neutral=(False,), by="Mistral"),
    refused("num_predict", "Send `max_tokens`.", by="Ollama"),
    refused("max_new_tokens", "Send `max_tokens`.", by="TGI"),
    refused("max_output_tokens", "Send `max_tokens`.", by="the Responses API"),
    refused("random_seed", "Send `seed`.", by="Mistral"),
    refused("stop_sequences", "Send `stop`.", by="Anthropic"),
    refused("options", "Send its fields beside the others.", neutral=({},), by="Ollama"),
    refused("system", "Send it as the first of `messages`, with role system.", by="Anthropic"),
    refused("input", "Send `messages`.", by="the Responses API"),
    refused("instructions", "Send it as the first of `messages`, with role system.", by="the Responses API"),
    refused("reasoning", _THINKING, neutral=({},), by="OpenRouter"),
    refused("thinking", _THINKING, by="Anthropic, DeepSeek"),
    refused("enable_thinking", _THINKING, by="Qwen"),
    refused("chat_template_kwargs", _THINKING, neutral=({},), by="vLLM, llama-server"),
    refused("provider", "Name an LLM as `model`, and others as `fallbacks`.", by="OpenRouter"),
    refused("models", "Name an LLM as `model`, and others as `fallbacks`.", by="OpenRouter"),
    refused("route", "Name an LLM as `model`, and others as `fallbacks`.", by="OpenRouter"),
    refused("transforms", "Prompts are not shortened; leave it out.", neutral=([],), by="OpenRouter"),
    refused("plugins", f"{_LATER} plugins; leave it out.", neutral=([],), by="OpenRouter"),
    refused("best_of", "There is one answer to a request; leave it out.", neutral=(1,), by="completions"),
    refused("echo", "Answers do not begin with the prompt; leave it out.", neutral=(False,), by="completions"),
)

CHAT_ROWS = (*_ANSWER, *_FORMAT, *_MESSAGES, *_PARTS, *_TOOLS, *_REPLAYED, *_DIALECTS)
"""The rows of a chat completion. A job's own fields are those of :class:`api.schemas.requests.JobRequest`."""

_NO_SUCH = "There is no such field of a chat completion"
_OF_A_JOB = (
    refused("prompt", f"{_NO_SUCH}; send `messages`."),
    refused("callback_url", f"{_NO_SUCH}; send a job to /v1/jobs."),
    refused("conversation_id", f"{_NO_SUCH}; send a job to /v1/jobs."),
)
_OF_BATCH = "Send it with the batch, for all of its requests."

CHANGES: Mapping[Surface, Iterable[Field]] = {
    Surface.CHAT: _OF_A_JOB,
    Surface.JOB: (
        refused("stream", "A job is not streamed; send it to /v1/chat/completions.", neutral=(False,)),
        ignored("stream_options", "Nothing streams."),
    ),
    Surface.LINE: (
        *_OF_A_JOB,
        refused("stream", "The requests of a batch are not streamed.", neutral=(False,)),
        ignored("stream_options", "Nothing streams."),
        refused("user", _OF_BATCH),
        refused("metadata", _OF_BATCH, neutral=({},)),
        refused("team", _OF_BATCH),
        refused("priority", _OF_BATCH),
        refused("expires_in", _OF_BATCH),
        refused("max_cost_usd", _OF_BATCH),
    ),
    Surface.FORM: (
        refused("messages", "A form has `prompt` and `system`, for all of its rows."),
        used("system", "The system's message, a template."),
        used("format", "Of the file: csv, jsonl or xlsx."),
        refused("stream", "The requests of a batch are not streamed.", neutral=(False,)),
        ignored("stream_options", "Nothing streams."),
        refused("expires_in", "Send `completion_window`."),
    ),
}
"""The rows in which a way in differs."""

TABLES: Mapping[Surface, Table] = {surface: table_of(CHAT_ROWS, rows) for surface, rows in CHANGES.items()}
"""What becomes of each field, by the way in."""
