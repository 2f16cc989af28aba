"""Errors inside an answer of status 200: one error object for each form in use; the table is in docs/providers.md."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]  # Any: a provider's JSON

_MESSAGES = ("message", "msg", "error_msg", "errorMessage", "status_msg", "detail", "details", "reason", "title")
_CODES = ("code", "status_code", "statusCode", "error_code", "status", "http_status")
_MOST_WRAPPINGS = 3
"""Gateways put an error that they got into an error of their own."""

_NOT_ERRORS = frozenset({"", "0", "200", "ok", "success", "none", "null", "false"})


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """A form of an error, who sends it, and what finds the error in a document: None where it is not of this form."""

    form: str
    said_by: str
    find: Callable[[Json], object]


def _says_something(error: object) -> object:
    """The error, unless it is empty: some gateways have an error object without values in every good answer."""
    if isinstance(error, dict):
        return error if any(str(value).lower() not in _NOT_ERRORS for value in error.values()) else None
    return error or None


def _of_error(document: Json) -> object:
    return _says_something(document.get("error"))


def _of_type(document: Json) -> object:
    return document if "error" in (document.get("type"), document.get("object")) else None


def _of_detail(document: Json) -> object:
    """FastAPI's error or a problem document (RFC 9457), of which a stream's own events with a detail are none."""
    is_error = document.keys() <= _PROBLEM and not isinstance(document.get("status"), str)
    return (document.get("detail") or None) if is_error else None


_PROBLEM = frozenset({"type", "title", "status", "detail", "instance", "code", "status_code"})


def _of_list(document: Json) -> object:
    errors = document.get("errors")
    return errors[0] if isinstance(errors, list) and errors else None


_FAILED_STATUS = re.compile(r"[45][0-9][0-9]|error|fail|failed|failure")


def _of_code(document: Json) -> object:
    says = any(isinstance(document.get(name), str) and document[name] for name in _MESSAGES)
    codes = [document.get(name) for name in ("code", "status_code", "error_code", "statusCode")]
    fails = any(code is not None and str(code).lower() not in _NOT_ERRORS for code in codes)
    fails |= _FAILED_STATUS.fullmatch(str(document.get("status")).lower()) is not None
    return document if says and (fails or document.get("success") is False) else None


def _of_base_resp(document: Json) -> object:
    said = document.get("base_resp")
    if not isinstance(said, dict) or not said.get("status_code"):
        return None
    return {**said, "type": _MINIMAX.get(str(said["status_code"]), "server_error")}


_MINIMAX = {
    "1002": "rate_limit_exceeded",
    "1004": "invalid_api_key",
    "1008": "insufficient_quota",
    "1026": "content_filter",
    "1027": "content_filter",
    "1039": "context_length_exceeded",
    "2049": "invalid_api_key",
}

ERROR_FORMS = (
    ErrorForm('`{"error": {...}}`, `{"error": "..."}`', "OpenAI, OpenRouter, vLLM, TGI, Ollama", _of_error),
    ErrorForm('`{"type": "error", "message"}`, `{"object": "error", "message"}`', "gateways, vLLM", _of_type),
    ErrorForm('`{"errors": [...]}`', "Cloudflare", _of_list),
    ErrorForm('`{"detail": ...}`', "FastAPI, and all that is built on it", _of_detail),
    ErrorForm('`{"base_resp": {"status_code", "status_msg"}}`', "MiniMax", _of_base_resp),
    ErrorForm('`{"code", "message"}`, `{"error_code", "error_msg"}`', "DashScope, Baidu, SiliconFlow", _of_code),
    ErrorForm('`{"success": false, "msg"}`', "Zhipu, gateways", _of_code),
    ErrorForm('`{"status": 429, "message"}`, `{"status": "error", "message"}`', "gateways", _of_code),
)


def error_in(document: object) -> object:
    """The error in a JSON document without an answer, as an object or a text; None where it has none.

    A list, as Google sends it, is read by its first object.
    """
    if isinstance(document, list):
        document = next((member for member in document if isinstance(member, dict)), None)
    error = _found(document)
    for _ in range(_MOST_WRAPPINGS):
        inner = None if isinstance(error, dict) and "message" in error else _found(error)
        if inner is None or inner is error:
            break
        error = inner
    return None if error is None else _plain(error)


def _found(document: object) -> object:
    """What the first form that fits finds in a document."""
    if not isinstance(document, dict):
        return None
    return next((error for form in ERROR_FORMS if (error := form.find(document)) is not None), None)


def _plain(error: object) -> object:
    """An error object with ``message`` and ``code`` where OpenAI has them, and its other fields as they are."""
    if isinstance(error, list):
        error = error[0] if error else None
    if not isinstance(error, dict):
        return str(error)
    message = next((error[name] for name in _MESSAGES if error.get(name)), None) or error.get("error") or "no message"
    return {**error, "message": str(message), "code": _code(error)}


def _code(error: Json) -> object:
    """The error's code: a number where it is one that is written as a text."""
    code = next((error[name] for name in _CODES if error.get(name) is not None), None)
    return int(code) if isinstance(code, str) and code.isdecimal() and len(code) == 3 else code
