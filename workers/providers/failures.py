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
_MAX_SAID = 1000
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
_ABOUT_THE_REQUEST = frozenset(
    {FailureCode.PROVIDER_REJECTED, FailureCode.CONTEXT_LENGTH_EXCEEDED, FailureCode.CONTENT_FILTERED}
)
"""Of these a tenant reads what the provider said. Other errors are between the provider and the operator."""

_PUBLIC = {
    FailureCode.PROVIDER_AUTH: "the provider does not accept this platform's access to it",
    FailureCode.RATE_LIMITED: "the provider's rate limit is reached",
    FailureCode.TIMEOUT: "the provider reported a time-out",
    FailureCode.OVERLOADED: "the provider failed or is overloaded",
}

_PLACE = re.compile(
    r"""\b[a-z][a-z0-9+.-]*://[^\s'"<>)]+"""  # a URL
    r"""|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"""  # an IPv4 address
    r"""|\[?(?<![\w:.])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{1,4}\b\]?(?::\d+)?"""  # an IPv6 address
    r"""|(?<![\w.-])(?=[\w.-]*[a-z])[\w-]+(?:\.[\w-]+)*:\d{4,5}\b"""  # a host and its port
    r"""|\bhost=['"]?[^\s'",)]+|\blocalhost\b"""  # a host as an error of a library names it
    r"""|(?<![\w.-])[\w-]+(?:\.[\w-]+)*\.(?:local|internal|intranet|lan|corp|svc)\b"""  # a host of a private network
    r"""|(?<![\w#])/(?:app|data|etc|home|mnt|models?|opt|proc|root|run|srv|tmp|usr|var|workspace)(?:/[\w.@+-]+)+""",
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
    return _error(code, f"HTTP {status}", complaint.message, retry_after(headers))


def failure_of_event(error: object) -> ProviderError:
    """The error that an error object within a successful answer means."""
    complaint = _complaint(error)
    code = _code(complaint, complaint.status or 500)
    return _error(code, "the provider broke off", complaint.message)


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
    failure = error.failure
    return ProviderError.of(
        failure.code,
        _without_key(failure.message, key),
        failure.retry_after_s,
        detail=_without_key(error.detail, key),
        here=error.here,
    )


def without_places(message: str) -> str:
    """A message without the addresses, hosts and file paths in it."""
    return _PLACE.sub("(...)", message)


def _error(code: FailureCode, what: str, said: str, retry_after_s: float | None = None) -> ProviderError:
    """The error of what a provider said, of which tenants see what is about their request."""
    if code in _ABOUT_THE_REQUEST:
        return ProviderError.of(code, f"{what}: {without_places(said[:_MAX_SAID])}", retry_after_s)
    return ProviderError.of(code, f"{_PUBLIC[code]} ({what})", retry_after_s, detail=said)


def _without_key(text: str, key: str | None) -> str:
    for form in (key, quote(key, safe=""), escape(key)) if key else ():
        text = text.replace(form, "***")
    return _CREDENTIAL.sub(r"\1\2***", text)[:_MAX_MESSAGE].replace("\0", "")


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
