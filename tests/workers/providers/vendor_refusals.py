"""What LLMs say of parameters that they do not take, as users quoted it in public, and what must be sent instead.

Every row is one of the first table in docs/providers.md. ``source``: where it was quoted, a repository and its thread.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.workers.providers.calling import REQUEST
from tests.workers.providers.vendor_errors import anthropic, google, openai

Json = dict[str, Any]  # Any: JSON
MESSAGE = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
}
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
FORM = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
SYSTEM = [{"role": "system", "content": "be brief"}, *REQUEST.messages]


def sends(name: str) -> Callable[[Json], bool]:
    """Whether a body has a parameter."""
    return lambda body: name in body


def has_role(role: str) -> Callable[[Json], bool]:
    """Whether a body has a message of a role."""
    return lambda body: any(message["role"] == role for message in body["messages"])


def has_form(kind: str) -> Callable[[Json], bool]:
    """Whether a body asks for a kind of form."""
    return lambda body: body.get("response_format", {}).get("type") == kind


@dataclass(frozen=True)
class Row:
    """What a server says to requests of a kind, and what the attempt must show then."""

    said: Any  # Any: a provider's JSON
    refuses: Callable[[Json], bool]
    adapted: list[str]
    source: str
    request: Json = field(default_factory=dict)
    status: int = 400
    provider: str = "openai"
    remembered: bool = True


def unsupported(name: str) -> Any:
    """OpenAI's refusal of a parameter."""
    message = f"Unsupported parameter: '{name}' is not supported with this model."
    return openai(message, code="unsupported_parameter", param=name)


def forbidden(*names: str) -> Json:
    """A pydantic server's refusal of fields."""
    detail = [
        {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"} for name in names
    ]
    return {"object": "error", "message": {"detail": detail}, "type": "invalid_request_error", "code": None}


def unknown(*names: str) -> Any:
    """Google's refusal of fields."""
    said = "\n".join(f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.' for name in names)
    return google(400, said, "INVALID_ARGUMENT")


BOTH = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
ONLY_1 = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported."
ROLE = "Unsupported value: 'messages[0].role' does not support '{}' with this model."
RAW = {
    "error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": json.dumps(unsupported("stop"))}}
}
PENALTIES = {"frequency_penalty": 0.5, "presence_penalty": 0.5}
VLLM = "[{'type': 'extra_forbidden', 'loc': ('body', 'min_p'), 'msg': 'Extra inputs are not permitted', 'input': 0.1}]"
DEEPSEEK = "Failed to deserialize the JSON body: response_format.type `json_schema` is unavailable now at line 1"
STREAM = "Your organization must be verified to stream this model."

ROWS = {
    "`Unsupported parameter: 'temperature'` (OpenAI)": Row(
        unsupported("temperature"),
        sends("temperature"),
        ["temperature"],
        "egoist/chatwise-releases#940",
        {"temperature": 0.0},
    ),
    "`'temperature' does not support 0 ... Only the default` (OpenAI)": Row(
        openai(ONLY_1, code="unsupported_value", param="temperature"),
        sends("temperature"),
        ["temperature"],
        "guardrails-ai/guardrails#1353, tmc/langchaingo#1355, nashsu/llm_wiki#670",
        {"temperature": 0.0},
    ),
    "`temperature is deprecated for this model` (Anthropic)": Row(
        anthropic("`temperature` is deprecated for this model."),
        sends("temperature"),
        ["temperature"],
        "HKUDS/nanobot#3418, The-PR-Agent/pr-agent#2456",
        {"temperature": 0.5},
        provider="anthropic",
    ),
    "`invalid temperature: only 1 is allowed` (Moonshot)": Row(
        openai("invalid temperature: only 1 is allowed for this model"),
        sends("temperature"),
        ["temperature"],
        "HKUDS/nanobot#202, QuantumNous/new-api#5372",
        {"temperature": 0.5},
    ),
    "`temperature and top_p cannot both be specified` (Anthropic)": Row(
        anthropic(BOTH),
        lambda body: "temperature" in body and "top_p" in body,
        ["top_p"],
        "BerriAI/litellm#15097, gptme/gptme#1110",
        {"temperature": 0.5, "top_p": 0.9},
        provider="anthropic",
    ),
    "`Unsupported parameter: 'stop'` (OpenAI, Azure)": Row(
        unsupported("stop"), sends("stop"), ["stop"], "huggingface/smolagents#1671, n8n-io/n8n#18149", {"stop": ["x"]}
    ),
    "`Argument not supported on this model: stop` (xAI)": Row(
        {"code": "Client specified an invalid argument", "error": "Argument not supported on this model: stop"},
        sends("stop"),
        ["stop"],
        "BerriAI/litellm#12635",
        {"stop": ["x"]},
    ),
    "`Argument not supported on this model: presencePenalty` (xAI)": Row(
        {
            "code": "Client specified an invalid argument",
            "error": "Argument not supported on this model: presencePenalty",
        },
        sends("presence_penalty"),
        ["presence_penalty"],
        "n8n-io/n8n#14581, lobehub/lobehub#8381",
        {"presence_penalty": 0.5},
    ),
    "`Model x does not support parameter presencePenalty` (xAI)": Row(
        {"error": "Model grok-4.6 does not support parameter presencePenalty."},
        sends("presence_penalty"),
        ["presence_penalty"],
        "miaoxworld/NativeTavern#83",
        {"presence_penalty": 0.5},
    ),
    '`Unknown name "...": Cannot find field`, of several (Google)': Row(
        unknown("frequency_penalty", "top_k", "seed"),
        sends("frequency_penalty"),
        ["frequency_penalty", "top_k", "seed"],
        "MinLL/SkyrimNet-GamePlugin#77, n4ze3m/page-assist#418",
        {"frequency_penalty": 0.5, "top_k": 5, "seed": 1},
    ),
    "`Penalty is not enabled` (Google)": Row(
        google(400, "Penalty is not enabled for models/gemini-2.5-flash", "INVALID_ARGUMENT"),
        sends("frequency_penalty"),
        ["frequency_penalty", "presence_penalty"],
        "vercel/ai#4022, BerriAI/litellm#32273",
        PENALTIES,
    ),
    "`extra_forbidden` with 422 (Mistral)": Row(
        forbidden("top_k", "min_p"),
        sends("top_k"),
        ["top_k", "min_p"],
        "mistralai/platform-docs-public#7, Gitlawb/openclaude#739",
        {"top_k": 5, "min_p": 0.1},
        status=422,
    ),
    "`extra_forbidden` as text (vLLM)": Row(
        {"object": "error", "message": VLLM, "type": "BadRequestError", "param": None, "code": 400},
        sends("min_p"),
        ["min_p"],
        "voideditor/void#128, vllm-project/vllm#3657",
        {"min_p": 0.1},
    ),
    "`Extra inputs are not permitted, field: 'top_k'` (Fireworks)": Row(
        openai("Extra inputs are not permitted, field: 'top_k', value: 5."),
        sends("top_k"),
        ["top_k"],
        "web-infra-dev/midscene#1322",
        {"top_k": 5},
    ),
    "`extraneous key [top_k] is not permitted` (Bedrock)": Row(
        {"message": "Malformed input request: #: extraneous key [top_k] is not permitted, please reformat your input."},
        sends("top_k"),
        ["top_k"],
        "pingcap/autoflow#574",
        {"top_k": 5},
    ),
    "`property 'seed' is unsupported` (Groq)": Row(
        openai("property 'seed' is unsupported, did you mean 'stop'?"),
        sends("seed"),
        ["seed"],
        "fanenr/chatbot#21, CherryHQ/cherry-studio#11435",
        {"seed": 1, "stop": ["x"]},
    ),
    "another provider's refusal in `metadata.raw` (OpenRouter)": Row(
        RAW, sends("stop"), ["stop"], "BeehiveInnovations/pal-mcp-server#134", {"stop": ["x"]}
    ),
    "`Use 'max_completion_tokens' instead` (OpenAI)": Row(
        openai(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        ),
        sends("max_tokens"),
        ["max_tokens -> max_completion_tokens"],
        "openai/openai-python#1724",
    ),
    "`Unrecognized request argument supplied: stream_options` (Azure)": Row(
        openai("Unrecognized request argument supplied: stream_options"),
        sends("stream_options"),
        ["stream_options"],
        "openai/openai-python#1724 has the form",
    ),
    "`Your organization must be verified to stream` (OpenAI)": Row(
        openai(STREAM, code="unsupported_value", param="stream"),
        sends("stream"),
        ["stream"],
        "continuedev/continue#8209, charmbracelet/crush#1216",
    ),
    "`response_format.type json_schema is unavailable now` (DeepSeek)": Row(
        openai(DEEPSEEK),
        has_form("json_schema"),
        ["response_format -> json_object"],
        "browser-use/browser-use#215, langchain-ai/langchain#29282",
        {"response_format": FORM},
        status=422,
    ),
    "`This response_format type is unavailable now` (DeepSeek)": Row(
        openai("This response_format type is unavailable now", code="invalid_request_error"),
        has_form("json_schema"),
        ["response_format -> json_object"],
        "llm-exe/llm-exe#662, BerriAI/litellm#31466",
        {"response_format": FORM},
    ),
    "`'response_format' of type 'json_schema' is not supported` (OpenAI)": Row(
        openai("Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."),
        has_form("json_schema"),
        ["response_format -> json_object"],
        "web-infra-dev/midscene#259, openai/openai-dotnet#276",
        {"response_format": FORM},
    ),
    "`The response_format parameter is unsupported` (xAI)": Row(
        {"error": "The response_format parameter is unsupported at the moment. Leave it unset."},
        sends("response_format"),
        ["response_format -> instruction"],
        "BerriAI/litellm#6610",
        {"response_format": FORM},
    ),
    "`'response_format.type' must be 'json_schema' or 'text'` (LM Studio)": Row(
        {"error": "'response_format.type' must be 'json_schema' or 'text'"},
        has_form("json_object"),
        ["response_format -> instruction"],
        "lmstudio-ai/lmstudio-bug-tracker#189, lfnovo/esperanto#46",
        {"response_format": {"type": "json_object"}},
    ),
    "`'messages' must contain the word 'json'` (OpenAI, DeepSeek)": Row(
        openai("'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'."),
        lambda body: "json" not in str(body["messages"]).lower(),
        ["response_format -> instruction"],
        "ultimatejimmy/xray.koplugin#33, browserbase/stagehand#1204",
        {"response_format": {"type": "json_object"}},
        remembered=False,
    ),
    "`Json mode is not enabled` (Google)": Row(
        google(400, "Json mode is not enabled for models/gemma-3-27b-it", "INVALID_ARGUMENT"),
        sends("response_format"),
        ["response_format -> instruction"],
        "google-gemini/deprecated-generative-ai-python#137",
        {"response_format": {"type": "json_object"}},
    ),
    "`does not support tool use`, of a form that is a tool (Anthropic)": Row(
        anthropic("'claude-x' does not support tool use."),
        sends("tools"),
        ["response_format -> instruction"],
        "the Messages API",
        {"response_format": FORM},
        provider="anthropic",
    ),
    "`does not support parameters: ['seed', 'top_p']` (LiteLLM)": Row(
        openai("litellm.UnsupportedParamsError: x does not support parameters: ['seed', 'top_p'], for model=y."),
        lambda body: "seed" in body or "top_p" in body,
        ["seed", "top_p"],
        "tscibilia/home-ops#3395, BerriAI/litellm#17658",
        {"seed": 7, "top_p": 0.5},
    ),
    "`doesn't support temperature=0.1 ... Only temperature=1` (LiteLLM)": Row(
        openai(
            "litellm.UnsupportedParamsError: gpt-5-nano doesn't support temperature=0.1 while reasoning is active. "
            "Only temperature=1 is supported unless reasoning_effort resolves to 'none'."
        ),
        sends("temperature"),
        ["temperature"],
        "BerriAI/litellm#33738",
        {"temperature": 0.1},
    ),
    "`The parameter ... specified in the request are not valid: not supported` (Volcengine)": Row(
        openai(
            "The parameter `frequency_penalty` specified in the request are not valid: not supported by current model.",
            code="InvalidParameter",
        ),
        sends("frequency_penalty"),
        ["frequency_penalty"],
        "the form of yiliqi78/TOKENICODE#3",
        {"frequency_penalty": 0.5},
    ),
    "`unexpected keyword argument 'min_p'` (servers in Python)": Row(
        openai("create() got an unexpected keyword argument 'min_p'"),
        sends("min_p"),
        ["min_p"],
        "servers that pass a body on as arguments",
        {"min_p": 0.1},
    ),
    "a validation error of pydantic as text": Row(
        openai("1 validation error for ChatRequest\nmin_p\n  Extra inputs are not permitted [type=extra_forbidden]"),
        sends("min_p"),
        ["min_p"],
        "pydantic's own text",
        {"min_p": 0.1},
    ),
    "`'messages[0].role' does not support 'system'` (OpenAI)": Row(
        openai(ROLE.format("system"), code="unsupported_value", param="messages[0].role"),
        has_role("system"),
        ["system -> developer"],
        "agno-agi/agno#1621, pydantic/pydantic-ai#974",
        {"messages": SYSTEM},
    ),
    "`System role not supported` (a template in vLLM)": Row(
        {"object": "error", "message": "System role not supported", "type": "BadRequestError", "code": 400},
        has_role("system"),
        ["system -> user"],
        "vllm-project/vllm#2964, sgl-project/sglang#892",
        {"messages": SYSTEM},
    ),
    "`Developer instruction is not enabled` (Google)": Row(
        google(400, "Developer instruction is not enabled for models/gemma-3-27b-it", "INVALID_ARGUMENT"),
        has_role("system"),
        ["system -> user"],
        "0xPlaygrounds/rig#788",
        {"messages": SYSTEM},
    ),
}
