"""What providers say in errors, as their users quoted it in public, and what each must mean.

Every row is one of the table in docs/providers.md. ``source``: where it was quoted, a repository and its thread.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Said:
    """An error of a provider, the code that it must have and the seconds to wait."""

    status: int
    body: Any  # Any: a provider's JSON, or its text
    code: str
    source: str
    headers: tuple[str, ...] = ()
    wait_s: float | None = None


def openai(message: str, kind: str = "invalid_request_error", code: str | None = None, param: str | None = None) -> Any:
    """OpenAI's form, which many share."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def anthropic(message: str, kind: str = "invalid_request_error") -> Any:
    """Anthropic's form."""
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


def google(code: int, message: str, status: str, *details: Any) -> Any:
    """Google's form: a list."""
    return [{"error": {"code": code, "message": message, "status": status, "details": list(details)}}]


_TERMS = "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
_ABOUT_KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
_IN_34_S = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.07s"}

MONEY: dict[str, Said] = {
    "no credit, said with 400 (Anthropic)": Said(
        400,
        anthropic("Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing."),
        "provider_auth",
        "Wei-Shaw/sub2api#1586, RooCodeInc/Roo-Code#2419",
    ),
    "a usage limit, said with 400 (Anthropic)": Said(
        400,
        anthropic(
            "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC."
        ),
        "provider_auth",
        "anthropics/claude-code#2127, anthropics/claude-code#38035",
    ),
    "400 `billing_hard_limit_reached` (OpenAI)": Said(
        400,
        openai("Billing hard limit has been reached", code="billing_hard_limit_reached"),
        "provider_auth",
        "dfinke/PowerShellAI#127",
    ),
    "429 `insufficient_quota` in `type` (OpenAI)": Said(
        429,
        openai("You exceeded your current quota, please check your plan and billing details.", "insufficient_quota"),
        "provider_auth",
        "OpenHands/OpenHands#998",
    ),
    "402 (DeepSeek, OpenRouter)": Said(
        402, openai("Insufficient Balance", "unknown_error"), "provider_auth", "continuedev/continue#9942"
    ),
    "429 with no balance (Zhipu)": Said(
        429,
        {"error": {"code": "1113", "message": "Your account has insufficient balance, please recharge."}},
        "provider_auth",
        "zhayujie/CowAgent#2910, zai-org/GLM-5#148",
    ),
}
ACCESS: dict[str, Said] = {
    "an invalid key, said with 400 (Google)": Said(
        400,
        google(400, "API key not valid. Please pass a valid API key.", "INVALID_ARGUMENT", _ABOUT_KEY),
        "provider_auth",
        "yym68686/uni-api#140, Wei-Shaw/sub2api#1709",
    ),
    "an incorrect key, said with 400 (xAI)": Said(
        400,
        {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: xa***."},
        "provider_auth",
        "BerriAI/litellm#12635 has the form",
    ),
    "403 `unsupported_country_region_territory` (OpenAI)": Said(
        403,
        openai(
            "Country, region, or territory not supported", "request_forbidden", "unsupported_country_region_territory"
        ),
        "provider_auth",
        "home-assistant/core#120072, continuedev/continue#11449",
    ),
    "a place that is not served, said with 400 (Google)": Said(
        400,
        google(400, "User location is not supported for the API use.", "FAILED_PRECONDITION"),
        "provider_auth",
        "google-gemini/gemini-cli#1993",
    ),
    "451": Said(451, "", "provider_auth", "RFC 7725"),
}
MODELS: dict[str, Said] = {
    "404 `model_not_found` (OpenAI)": Said(
        404,
        openai("The model `x` does not exist or you do not have access to it.", code="model_not_found"),
        "provider_auth",
        "BerriAI/litellm#21377, BerriAI/litellm#17001",
    ),
    "404 of a model that is deprecated (OpenAI)": Said(
        404,
        openai("The model `davinci` has been deprecated, learn more here: https://x.example", code="model_not_found"),
        "provider_auth",
        "orhanerday/open-ai#135",
    ),
    "400 `model_decommissioned` (Groq)": Said(
        400,
        openai(
            "The model `gemma2-9b-it` has been decommissioned and is no longer supported.", code="model_decommissioned"
        ),
        "provider_auth",
        "crewAIInc/crewAI#1976, RightNow-AI/openfang#834",
    ),
    "410 (NVIDIA)": Said(
        410,
        {
            "type": "about:blank",
            "title": "Gone",
            "status": 410,
            "detail": "The model 'a/b' has reached its end of life.",
        },
        "provider_auth",
        "NVIDIA/NemoClaw#11902",
    ),
    "400 `invalid_model` (Mistral)": Said(
        400,
        {
            "object": "error",
            "message": "Invalid model: mistral-x",
            "type": "invalid_model",
            "param": None,
            "code": "1500",
        },
        "provider_auth",
        "tmc/langchaingo#1233, mistralai/mistral-vibe#617",
    ),
    "an unknown model, said with 400 (DeepSeek, OpenRouter)": Said(
        400, openai("Model Not Exist"), "provider_auth", "ConardLi/easy-dataset#9"
    ),
    "404 of a path that is not there (Ollama without `/v1`)": Said(
        404, "404 page not found", "provider_auth", "tashfeenahmed/freellmapi#66"
    ),
    "404 `DeploymentNotFound` (Azure)": Said(
        404,
        {"error": {"code": "DeploymentNotFound", "message": "The API deployment for this resource does not exist."}},
        "provider_auth",
        "chatboxai/chatbox#646",
    ),
    "404 `Resource not found` (Azure)": Said(
        404, {"error": {"code": "404", "message": "Resource not found"}}, "provider_auth", "BerriAI/litellm#8572"
    ),
    "404 `No endpoints found` (OpenRouter)": Said(
        404,
        {"error": {"message": "No endpoints found for a/b:free.", "code": 404}},
        "provider_auth",
        "anomalyco/opencode#1558",
    ),
    "405": Said(405, {"detail": "Method Not Allowed"}, "provider_auth", "a base_url without /v1"),
    "501": Said(501, openai("not here", "not_supported_error"), "provider_auth", "llama-server's documents"),
}
CONTEXTS: dict[str, Said] = {
    f"context length ({vendor})": Said(status, body, "context_length_exceeded", source)
    for vendor, status, body, source in (
        (
            "Google",
            400,
            google(
                400,
                "The input token count (218152) exceeds the maximum number of tokens allowed (65536).",
                "INVALID_ARGUMENT",
            ),
            "google-gemini/gemini-cli#11916",
        ),
        (
            "Groq, said with 413",
            413,
            openai(
                "Request too large for model `x` on tokens per minute (TPM): Limit 6000",
                "tokens",
                "rate_limit_exceeded",
            ),
            "HunorLaczko/ha-groq-cloud-api#27, continuedev/continue#10218",
        ),
        (
            "OpenRouter",
            400,
            openai("This endpoint's maximum context length is 32768 tokens. However, you requested 42832."),
            "refly-ai/refly#1177",
        ),
        (
            "xAI",
            400,
            {
                "code": "Client specified an invalid argument",
                "error": "This model's maximum prompt length is 131072 but the request contains 150000 tokens.",
            },
            "cline/cline#3120",
        ),
        (
            "TGI, said with 422",
            422,
            {
                "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 1244",
                "error_type": "validation",
            },
            "huggingface/text-generation-inference#628",
        ),
        (
            "Cerebras",
            400,
            openai(
                "Please reduce the length of the messages or completion. Current length is 9000 while limit is 8192",
                code="context_length_exceeded",
            ),
            "BerriAI/litellm, exception_mapping_utils.py",
        ),
        (
            "Bedrock",
            400,
            {"message": "Input is too long for requested model."},
            "aws-samples/assessment-generator#2",
        ),
        ("a proxy's body limit, 413", 413, "<html><h1>413 Request Entity Too Large</h1></html>", "nginx"),
        (
            "OpenAI, `max_tokens` above the model's",
            400,
            openai(
                "max_tokens is too large: 8192. This model supports at most 4096 completion tokens.",
                param="max_tokens",
            ),
            "ChatGPTNextWeb/NextChat#3195",
        ),
        (
            "vLLM, `max_tokens` too large",
            400,
            openai(
                "'max_tokens' or 'max_completion_tokens' is too large: 64. This model's maximum context length is 65.",
                "BadRequestError",
            ),
            "claude-code-best/claude-code#272",
        ),
        (
            "Anthropic, `max_tokens` above the model's",
            400,
            anthropic("max_tokens: 100000 > 64000, which is the maximum allowed number of output tokens for claude-x"),
            "the Messages API",
        ),
        (
            "DeepSeek, `max_tokens` above the model's",
            400,
            openai("Invalid max_tokens value, the valid range of max_tokens is [1, 8192]"),
            "deepseek-ai/DeepSeek-V3#69",
        ),
        (
            "DashScope, `max_tokens` above the model's",
            400,
            openai("<400> InternalError.Algo.InvalidParameter: Range of max_tokens should be [1, 8192]"),
            "open-webui/open-webui#10507",
        ),
    )
}
FILTERS: dict[str, Said] = {
    "content filter with `innererror` (Azure)": Said(
        400,
        {
            "error": {
                "message": _TERMS,
                "type": None,
                "param": "prompt",
                "code": "content_filter",
                "status": 400,
                "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {}},
            }
        },
        "content_filtered",
        "microsoft/TinyTroupe#100, compl-ai/compl-ai#20",
    ),
    "content filter in words (Azure behind proxies)": Said(
        400, openai(_TERMS, code="400"), "content_filtered", "onyx-dot-app/onyx#10893"
    ),
    "400 `invalid_prompt` (OpenAI)": Said(
        400,
        openai(
            "Invalid prompt: your prompt was flagged as potentially violating our usage policy.", code="invalid_prompt"
        ),
        "content_filtered",
        "BerriAI/litellm, exception_mapping_utils.py",
    ),
    "403 of a moderation (OpenRouter)": Said(
        403,
        {"error": {"code": 403, "message": 'a/b requires moderation on OpenRouter. Your input was flagged for "x".'}},
        "content_filtered",
        "OpenRouter's documents",
    ),
    "output blocked (Anthropic)": Said(
        400,
        anthropic("Output blocked by content filtering policy"),
        "content_filtered",
        "anthropics/claude-code#6195, #58367",
    ),
    "content exists risk (DeepSeek)": Said(
        400, openai("Content Exists Risk"), "content_filtered", "deepseek-ai/DeepSeek-V2#30, 666ghj/BettaFish#108"
    ),
    "400 `DataInspectionFailed` (DashScope)": Said(
        400,
        {"error": {"code": "data_inspection_failed", "message": "Input data may contain inappropriate content."}},
        "content_filtered",
        "camel-ai/owl#432",
    ),
}
MOMENTS: dict[str, Said] = {
    "429 with `retryDelay` (Google)": Said(
        429,
        google(
            429,
            "You exceeded your current quota, please check your plan and billing details.",
            "RESOURCE_EXHAUSTED",
            _IN_34_S,
        ),
        "rate_limited",
        "google-gemini/gemini-cli#14811",
        wait_s=34.07,
    ),
    "429 that says how long in words (OpenAI, Groq)": Said(
        429,
        openai(
            "Rate limit reached for x on tokens per min (TPM). Please try again in 7m12s.",
            "tokens",
            "rate_limit_exceeded",
        ),
        "rate_limited",
        "vectorize-io/hindsight#3508",
        wait_s=432,
    ),
    "429 with `x-ratelimit-reset-tokens: 6m0s`": Said(
        429,
        openai("slow down", "tokens", "rate_limit_exceeded"),
        "rate_limited",
        "vectorize-io/hindsight#3508, CortexLM/cortex-code#407",
        (
            "x-ratelimit-reset-requests: 1h0m0s",
            "x-ratelimit-remaining-requests: 9",
            "x-ratelimit-reset-tokens: 6m0s",
            "x-ratelimit-remaining-tokens: 0",
        ),
        360,
    ),
    "429 with the reset of a proxy's provider (OpenRouter)": Said(
        429,
        {"error": {"message": "Provider returned error", "code": 429, "metadata": {"headers": {"Retry-After": "12"}}}},
        "rate_limited",
        "dirge-code/dirge#719",
        wait_s=12,
    ),
    "503 of a model that is loading (llama-server)": Said(
        503,
        {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}},
        "overloaded",
        "mostlygeek/llama-swap#146",
    ),
    "503 of a model that is loading (Hugging Face)": Said(
        503,
        {"error": "Model a/b is currently loading", "estimated_time": 20.0},
        "overloaded",
        "huggingface/transformers#32665",
        wait_s=20,
    ),
    "520": Said(520, "<html>", "overloaded", "BerriAI/litellm, 'Web server is returning an unknown error'"),
    "522": Said(522, "<html>", "timeout", "Cloudflare's documents"),
    "524": Said(524, "<html>", "timeout", "Cloudflare's documents"),
    "409": Said(409, openai("lock timeout"), "overloaded", "openai/openai-python, which sends it again"),
    "425": Said(425, "", "overloaded", "RFC 8470"),
}
OTHERS: dict[str, Said] = {
    "424 (Groq, TGI)": Said(
        424, {"error": "Request failed during generation", "error_type": "generation"}, "overloaded", "TGI's documents"
    ),
    "498 (Groq)": Said(
        498, openai("Flex tier capacity exceeded", "capacity_exceeded"), "overloaded", "Groq's documents"
    ),
    "499": Said(499, openai("Request cancelled"), "overloaded", "nginx, Groq's documents"),
    "400 `rate_limit_exceeded`": Said(
        400, openai("no", code="rate_limit_exceeded"), "rate_limited", "BerriAI/litellm#11455"
    ),
    "400 `server_error`": Said(
        400, openai("timeout, overloaded", "server_error"), "overloaded", "wafflebase/wafflebase#578"
    ),
    "400 that speaks of a rate limit": Said(
        400,
        openai("Your prompt mentions rate limit 429, timeout, overloaded_error"),
        "provider_rejected",
        "BerriAI/litellm#11455",
    ),
    "418": Said(418, "no", "provider_rejected", "RFC 2324"),
    "a value out of its range": Said(
        400,
        openai(
            "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 200 instead.",
            code="decimal_above_max_value",
            param="temperature",
        ),
        "provider_rejected",
        "BerriAI/litellm, exception_mapping_utils.py",
    ),
}
SAID: dict[str, Said] = MONEY | ACCESS | MODELS | CONTEXTS | FILTERS | MOMENTS | OTHERS
