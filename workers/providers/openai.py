"""The ``openai`` provider: any server that speaks OpenAI's chat completions over HTTP."""

import os
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

import httpx
import orjson

from models.catalog import LLM
from models.errors import ConfigurationError, FailureCode
from workers.providers.base import Generation, GenerationRequest, Meter, ProviderError

MAX_ANSWER_BYTES = 32 * 1024 * 1024
_CONNECT_TIMEOUT_S = 10.0

_CODE_OF_STATUS = {
    401: FailureCode.PROVIDER_AUTH,
    403: FailureCode.PROVIDER_AUTH,
    408: FailureCode.TIMEOUT,
    409: FailureCode.OVERLOADED,
    429: FailureCode.RATE_LIMITED,
}
Json = dict[str, Any]  # Any: a provider's JSON, read defensively


class OpenAIProvider:
    """One LLM of an OpenAI-compatible server, over one pool of connections."""

    def __init__(self, llm: LLM, *, max_connections: int) -> None:
        self._model = llm.model
        headers = {"authorization": f"Bearer {_read_key(llm.api_key_env)}"} if llm.api_key_env else {}
        self._client = httpx.AsyncClient(
            base_url=llm.base_url or "",
            headers=headers,
            timeout=httpx.Timeout(llm.timeout_s, connect=min(_CONNECT_TIMEOUT_S, llm.timeout_s)),
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
            trust_env=False,
        )

    async def generate(self, request: GenerationRequest, meter: Meter) -> Generation:
        """Answer by one POST to ``/chat/completions``."""
        try:
            response = await self._client.post("/chat/completions", json=to_wire(request, self._model))
        except httpx.TimeoutException as error:
            raise ProviderError.of(FailureCode.TIMEOUT, f"no answer in time ({type(error).__name__})") from error
        except httpx.HTTPError as error:
            raise ProviderError.of(FailureCode.CONNECTION, str(error) or type(error).__name__) from error
        if not response.is_success:
            raise refusal(response.status_code, response.headers, response.content)
        return from_wire(response.content, meter)

    async def close(self) -> None:
        """Close the pool."""
        await self._client.aclose()


def to_wire(request: GenerationRequest, model: str | None) -> Json:
    """The body of a chat completion request."""
    optional = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stop": request.stop or None,
        "seed": request.seed,
        "response_format": request.response_format,
    }
    body: Json = {"messages": request.messages, "max_tokens": request.max_tokens}
    if model is not None:
        body["model"] = model
    return body | {name: value for name, value in optional.items() if value is not None}


def from_wire(content: bytes, meter: Meter) -> Generation:
    """The answer in a chat completion; usage goes to the meter. Raises ProviderError when it is none."""
    try:
        body = orjson.loads(content)
        choice = body["choices"][0]
        text, reason = choice["message"].get("content"), choice.get("finish_reason") or "stop"
        usage = body.get("usage") or {}
        meter.input_tokens = int(usage.get("prompt_tokens") or 0)
        meter.output_tokens = int(usage.get("completion_tokens") or 0)
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        message = f"the answer is not a chat completion ({type(error).__name__})"
        raise ProviderError.of(FailureCode.OVERLOADED, message) from error
    meter.mark_first_token()
    if reason == "content_filter":
        raise ProviderError.of(FailureCode.CONTENT_FILTERED, "the provider filtered the answer")
    return Generation(str(text or ""), str(reason))


def refusal(status: int, headers: httpx.Headers, content: bytes) -> ProviderError:
    """The error that a non-2xx answer means."""
    code, message = _error_of(content)
    if code == "context_length_exceeded":
        failure = FailureCode.CONTEXT_LENGTH_EXCEEDED
    elif status >= 500:
        failure = FailureCode.OVERLOADED
    else:
        failure = _CODE_OF_STATUS.get(status, FailureCode.PROVIDER_REJECTED)
    return ProviderError.of(failure, f"HTTP {status}: {message}"[:500], retry_after(headers))


def retry_after(headers: httpx.Headers) -> float | None:
    """Seconds to wait by ``retry-after-ms`` or ``Retry-After`` (seconds or a date; RFC 9110, 10.2.3)."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after", "")
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except ValueError:
        return None


def _error_of(content: bytes) -> tuple[str | None, str]:
    try:
        error = orjson.loads(content)["error"]
        return error.get("code"), str(error.get("message") or "no message")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None, content[:200].decode("utf-8", "replace") or "no body"


def _read_key(variable: str) -> str:
    key = os.environ.get(variable)
    if not key:
        raise ConfigurationError(f"the environment variable {variable} holds no API key")
    return key
