"""What a provider says in an error, read out of every form in use.

============================  =====================================================================
OpenAI, vLLM, llama-server    ``{"error": {"message", "type", "param", "code"}}``
Azure                         the same with ``innererror: {"code"}``, or ``{"statusCode", "message"}``
Anthropic                     ``{"type": "error", "error": {"type", "message"}}``
Google                        ``[{"error": {"code", "message", "status", "details": [{"reason", "retryDelay"}]}}]``
Mistral                       ``{"object": "error", "message": {"detail": [{"type", "loc", "msg"}]}, "type", "code"}``
xAI, Ollama, TGI              ``{"code": "...", "error": "..."}``, ``{"error": "...", "error_type": "..."}``
OpenRouter                    ``{"error": {"code", "message", "metadata": {"raw", "headers"}}}``, ``raw`` a provider's
FastAPI, NVIDIA               ``{"detail": [...]}``, ``{"title", "status", "detail": "..."}``
proxies                       another provider's error as JSON in ``message``
============================  =====================================================================
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

Json = dict[str, Any]  # Any: a provider's JSON

_MAX_TEXT = 4096
_MOST_NESTED = 3
_MOST_PARTS = 20


@dataclass(frozen=True, slots=True)
class Complaint:
    """An error as a provider wrote it.

    ``kinds``: its names for the kind, in lower case; ``status``: an HTTP status in the body; ``parameter``: the
    parameter that it is about; ``unknown``: fields of the request that a validator does not know; ``wait``: how long
    to wait, as it is written; ``headers``: those that a proxy got from the provider behind it.
    """

    kinds: tuple[str, ...]
    status: int | None
    message: str
    parameter: str | None = None
    unknown: tuple[str, ...] = ()
    wait: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def read_complaint(body: bytes) -> Complaint:
    """The error in an answer's body, whatever its form."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return Complaint((), None, body.decode("utf-8", "replace").strip()[:_MAX_TEXT] or "no body")
    return complaint_of(document)


def complaint_of(document: object, depth: int = 0) -> Complaint:
    """The error that a JSON value is."""
    if isinstance(document, list) and document and isinstance(document[0], dict) and "error" in document[0]:
        document = document[0]
    if not isinstance(document, dict):
        return _of_details(document) if isinstance(document, list) else Complaint((), None, _text(document))
    error = document.get("error")
    if isinstance(error, dict):
        return _of_error(error, depth)
    if isinstance(error, str):
        return _of_error({**document, "message": error}, depth)
    if isinstance(errors := document.get("errors"), list) and errors:
        return complaint_of({"error": errors[0]}, depth) if isinstance(errors[0], dict) else _of_details(errors)
    return _of_error(document, depth)


def _of_error(error: Json, depth: int) -> Complaint:
    said = error.get("message") or error.get("detail") or error.get("msg") or error.get("title")
    found = _of_message(said, depth)
    inner = _mapping(error.get("innererror") or error.get("inner_error"))
    details = [_mapping(detail) for detail in _list(error.get("details"))]
    metadata = _mapping(error.get("metadata"))
    behind = _of_message(raw, depth) if (raw := metadata.get("raw")) else Complaint((), None, "")
    names = (
        *(error.get(name) for name in ("code", "type", "error_type", "status")),
        inner.get("code"),
        *(detail.get("reason") for detail in details),
    )
    kinds = tuple(name.lower() for name in names if isinstance(name, str))
    message = f"{found.message}: {behind.message}" if behind.message else found.message
    waits = (*(detail.get("retryDelay") for detail in details), error.get("retry_after"), error.get("estimated_time"))
    parameter = error.get("param")
    return Complaint(
        (*kinds, *found.kinds, *behind.kinds),
        found.status or _status(error, kinds) or behind.status,
        message[:_MAX_TEXT],
        parameter if isinstance(parameter, str) and parameter else found.parameter or behind.parameter,
        found.unknown + behind.unknown,
        next((str(wait) for wait in waits if isinstance(wait, str | int | float)), None) or found.wait or behind.wait,
        {str(name).lower(): str(value) for name, value in _mapping(metadata.get("headers")).items()},
    )


def _of_message(said: object, depth: int) -> Complaint:
    """The error in a message, which may be another provider's error, or a validator's list."""
    if isinstance(said, list):
        return _of_details(said)
    if isinstance(said, dict):
        return _of_details(said["detail"]) if isinstance(said.get("detail"), list) else complaint_of(said, depth + 1)
    text = _text(said)
    if depth < _MOST_NESTED and text.lstrip().startswith(("{", "[")):
        try:
            nested = orjson.loads(text)
        except orjson.JSONDecodeError:
            return Complaint((), None, text)
        if nested and isinstance(nested, dict | list):
            return complaint_of(nested, depth + 1)
    return Complaint((), None, text)


def _of_details(details: list[Any]) -> Complaint:  # Any: a provider's JSON
    """A validator's list, such as pydantic's: a field that is not known is at ``("body", name)``."""
    said, unknown = [], []
    for detail in map(_mapping, details[:_MOST_PARTS]):
        place = [str(part) for part in _list(detail.get("loc")) if part != "body"]
        text = _text(detail.get("msg") or detail.get("message") or detail)
        said.append(f"{'.'.join(place)}: {text}" if place else text)
        if detail.get("type") == "extra_forbidden" and len(place) == 1:
            unknown.append(place[0])
    return Complaint((), None, "; ".join(said)[:_MAX_TEXT] or "no message", unknown=tuple(unknown))


def _status(error: Json, kinds: tuple[str, ...]) -> int | None:
    for name in ("code", "status", "statusCode", "status_code"):
        value = error.get(name)
        if isinstance(value, str) and len(value) == 3 and value.isdecimal():
            value = int(value)
        if isinstance(value, int) and 400 <= value <= 599:
            return value
    return 400 if "invalid_request_error" in kinds else None


def _text(said: object) -> str:
    return (said if isinstance(said, str) else "no message" if said is None else str(said))[:_MAX_TEXT] or "no message"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
