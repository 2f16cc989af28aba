"""What a provider's error means, in the codes of the design; the table is in docs/providers.md."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from html import escape
from math import isfinite
from time import time
from typing import Any
from urllib.parse import quote

import orjson

from models.errors import FailureCode
from workers.providers.base import ProviderError

MAX_ERROR_BYTES = 64 * 1024
_MAX_MESSAGE = 500
_MAX_RETRY_AFTER_S = 86_400.0

_OF_STATUS = {
    401: FailureCode.PROVIDER_AUTH,
    402: FailureCode.PROVIDER_AUTH,
    403: FailureCode.PROVIDER_AUTH,
    408: FailureCode.TIMEOUT,
    409: FailureCode.OVERLOADED,
    425: FailureCode.OVERLOADED,
    429: FailureCode.RATE_LIMITED,
    504: FailureCode.TIMEOUT,
}

_OF_KIND = {
    # OpenAI's `code` or `type`
    "context_length_exceeded": FailureCode.CONTEXT_LENGTH_EXCEEDED,
    "string_above_max_length": FailureCode.CONTEXT_LENGTH_EXCEEDED,
    "content_filter": FailureCode.CONTENT_FILTERED,
    "content_policy_violation": FailureCode.CONTENT_FILTERED,
    "insufficient_quota": FailureCode.PROVIDER_AUTH,
    "invalid_api_key": FailureCode.PROVIDER_AUTH,
    "rate_limit_exceeded": FailureCode.RATE_LIMITED,
    "server_error": FailureCode.OVERLOADED,
    # llama-server's `type`
    "exceed_context_size_error": FailureCode.CONTEXT_LENGTH_EXCEEDED,
    "unavailable_error": FailureCode.OVERLOADED,
    # Anthropic's `type`
    "overloaded_error": FailureCode.OVERLOADED,
    "api_error": FailureCode.OVERLOADED,
    "timeout_error": FailureCode.TIMEOUT,
    "rate_limit_error": FailureCode.RATE_LIMITED,
    "authentication_error": FailureCode.PROVIDER_AUTH,
    "permission_error": FailureCode.PROVIDER_AUTH,
    "billing_error": FailureCode.PROVIDER_AUTH,
    "request_too_large": FailureCode.CONTEXT_LENGTH_EXCEEDED,
}

_CONTEXT_MESSAGE = re.compile(
    r"maximum context length"  # OpenAI, vLLM
    r"|prompt is too long"  # Anthropic
    r"|exceed(s|ed)? (the )?(available )?context (size|length|limit|window)"  # llama-server, Anthropic
    r"|longer than the maximum model length",  # vLLM
    re.IGNORECASE,
)
_CREDENTIAL = re.compile(
    r"""(?i)(\bbearer\s+)[^\s'",;}<]{8,}"""
    r"""|((?:x-api-key|authorization)['"]?\s*[:=]\s*['"]?)(?!bearer\b)[^\s'",;}<]+"""
)


@dataclass(frozen=True, slots=True)
class Complaint:
    """An error object as a provider wrote it: its names for the kind, an HTTP status, a text."""

    kinds: tuple[str, ...]
    status: int | None
    message: str


def failure_of_status(status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """The error that an answer without success means."""
    complaint = read_complaint(body)
    code = _code(complaint, status)
    return ProviderError.of(code, f"HTTP {status}: {complaint.message}", retry_after(headers))


def failure_of_event(error: object) -> ProviderError:
    """The error that an error object within a successful answer means."""
    complaint = _complaint(error)
    code = _code(complaint, complaint.status or 500)
    return ProviderError.of(code, f"the provider broke off: {complaint.message}")


def read_complaint(body: bytes) -> Complaint:
    """The error object of an answer's body, in any form in use: OpenAI, Anthropic, vLLM, Ollama, FastAPI, plain."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return Complaint((), None, body.decode("utf-8", "replace").strip() or "no body")
    if isinstance(document, dict):
        return _complaint(document.get("error") or document.get("detail") or document)
    return _complaint(document)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by ``retry-after-ms`` or ``Retry-After`` (seconds or a date; RFC 9110, 10.2.3), a day at most."""
    milliseconds, value = headers.get("retry-after-ms"), headers.get("retry-after")
    for text, unit in ((milliseconds, 1000), (value, 1)):
        try:
            seconds = float(text or "") / unit
        except ValueError:
            continue
        if isfinite(seconds):
            return min(max(0.0, seconds), _MAX_RETRY_AFTER_S)
    try:
        return min(max(0.0, parsedate_to_datetime(value or "").timestamp() - time()), _MAX_RETRY_AFTER_S)
    except (ValueError, OverflowError):
        return None


def scrubbed(error: ProviderError, key: str | None) -> ProviderError:
    """The same error without the key, which a server may have echoed, and no longer than a message should be."""
    message = error.failure.message
    for form in (key, quote(key, safe=""), escape(key)) if key else ():
        message = message.replace(form, "***")
    message = _CREDENTIAL.sub(r"\1\2***", message)[:_MAX_MESSAGE]
    return ProviderError.of(error.failure.code, message.replace("\0", ""), error.failure.retry_after_s)


def _complaint(error: Any) -> Complaint:  # Any: a provider's JSON
    if not isinstance(error, dict):
        return Complaint((), None, str(error) if error else "no message")
    code = error.get("code")
    kinds = tuple(kind for kind in (code, error.get("type")) if isinstance(kind, str))
    status = code if isinstance(code, int) and 400 <= code <= 599 else None
    if status is None and "invalid_request_error" in kinds:
        status = 400
    return Complaint(kinds, status, str(error.get("message") or "no message"))


def _code(complaint: Complaint, status: int) -> FailureCode:
    if _CONTEXT_MESSAGE.search(complaint.message[:4096]) and status not in {401, 403, 429}:
        return FailureCode.CONTEXT_LENGTH_EXCEEDED
    for kind in complaint.kinds:
        if kind in _OF_KIND:
            return _OF_KIND[kind]
    if status >= 500:
        return _OF_STATUS.get(status, FailureCode.OVERLOADED)
    return _OF_STATUS.get(status, FailureCode.PROVIDER_REJECTED)
