"""Errors on the wire: RFC 9457 problem+json that OpenAI's clients read too."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from api.bodies import shorten
from api.hints import Paths, not_allowed
from models.database import DatabaseFailure, NotStorable, classify, is_unstorable
from models.errors import FieldProblem, HeadraceError, InvalidApiKey, Unavailable, ValidationFailed

MEDIA_TYPE = "application/problem+json"
MAX_PROBLEMS = 100

log = structlog.get_logger()

_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}
_OPENAI_TYPES = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}

_UNAVAILABLE = {
    DatabaseFailure.AWAY: ("Postgres cannot be reached", "try again shortly", 1),
    DatabaseFailure.BUSY: ("Every connection to Postgres was busy for too long", "try again shortly", 2),
    DatabaseFailure.READ_ONLY: ("Postgres takes no writes now, as during a failover", "try again shortly", 2),
    DatabaseFailure.CONFLICT: ("Another request holds what this one needs", "try again shortly", 1),
    DatabaseFailure.TIMEOUT: ("The request took too long", "ask for less, such as a shorter period", 30),
    DatabaseFailure.FULL: ("Postgres is out of space or memory", "nothing was recorded", 30),
}
"""What a caller reads about each failure of Postgres that is not the request's fault: what happened, what that means or
what to do, and the seconds after which to try again."""


def problem_response(
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    param: str | None = None,
    problems: Sequence[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, object] | None = None,
) -> Response:
    """A problem document with the contract's members and an error's own; ``problems`` become ``errors``."""
    document: dict[str, Any] = {  # Any: JSON
        "type": f"urn:headrace:error:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "error": {"message": detail, "type": openai_type(status), "code": code, "param": param},
        **(members or {}),
    }
    if problems:
        document["errors"] = [_entry(problem) for problem in problems]
    return Response(orjson.dumps(document), status, headers, MEDIA_TYPE)


def openai_type(status: int) -> str:
    """What OpenAI calls the kind of an error with this status."""
    return _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")


def validation_failed(errors: Sequence[Mapping[str, Any]]) -> ValidationFailed:
    """Pydantic's errors as one refusal with one entry per field."""
    problems = [_field_problem(error) for error in errors[:MAX_PROBLEMS]]
    detail = "; ".join(f"{problem.field}: {problem.message}" for problem in problems[:3])
    if len(problems) > 3:
        detail += f"; and {len(problems) - 3} more"
    return ValidationFailed(detail, param=problems[0].field, problems=problems)


def install_error_handlers(app: FastAPI) -> None:
    """Answer every refusal and every absence of Postgres with a problem document."""
    app.add_exception_handler(HeadraceError, _on_refusal)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameters)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    for kind in (SQLAlchemyError, OSError, NotStorable, UnicodeEncodeError):
        app.add_exception_handler(kind, _on_store_error)


async def _on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HeadraceError)
    return refusal_response(error)


def refusal_response(error: HeadraceError) -> Response:
    """The response to a refusal that Headrace names."""
    headers = dict(error.headers)
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    if isinstance(error, InvalidApiKey):
        headers["www-authenticate"] = "Bearer"
    return problem_response(
        error.status,
        error.code,
        error.title,
        error.detail,
        param=error.param,
        problems=error.problems,
        headers=headers,
        members=error.members,
    )


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    detail, headers = str(error.detail), dict(error.headers or {})
    paths: Paths = request.app.state.paths
    path = request.url.path
    if error.status_code == 404:
        detail = paths.not_found(request.method, path)
    elif error.status_code == 405:
        methods = paths.methods(path)
        headers["allow"] = ", ".join(methods) or headers.get("allow", "")
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
        detail = not_allowed(request.method, path, methods)
    code = _CODES.get(error.status_code, title.lower().replace(" ", "_"))
    return problem_response(error.status_code, code, title, detail, headers=headers)


async def _on_invalid_parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return refusal_response(validation_failed([{**entry, "loc": entry["loc"][1:]} for entry in error.errors()]))


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _on_store_error(request: Request, error: Exception) -> Response:
    said = str(error).partition("\n")[0]
    if is_unstorable(error):
        log.warning("api.not_storable", path=request.url.path, error=said)
        return refusal_response(not_storable())
    failure = classify(error)
    if failure not in _UNAVAILABLE:
        raise error
    log.warning("api.unavailable", path=request.url.path, failure=failure, error=said)
    return refusal_response(unavailable(failure))


def unavailable(failure: DatabaseFailure, consequence: str | None = None) -> Unavailable:
    """The refusal for a failure of Postgres; ``consequence``: what it means for this request, if that is known.

    A request that took too long is not to be sent again as it is, which OpenAI's clients would do.
    """
    what, advice, retry_after_s = _UNAVAILABLE[failure]
    headers = {"x-should-retry": "false"} if failure is DatabaseFailure.TIMEOUT else {}
    return Unavailable(f"{what}; {consequence or advice}.", retry_after_s=retry_after_s, headers=headers)


def not_storable() -> ValidationFailed:
    """The refusal of a request with a value that Postgres cannot hold and that no check named before."""
    message = "A value of the request cannot be stored: it has a character such as U+0000, or a number out of range."
    return ValidationFailed(message, problems=[FieldProblem("body", message)])


def unexpected_response() -> Response:
    """The response to a failure that nobody foresaw; it says nothing of what happened."""
    return problem_response(
        500, "internal", "Something went wrong here", "The request failed; the error has been logged."
    )


def _entry(problem: FieldProblem) -> dict[str, str | int]:
    entry: dict[str, str | int] = {"field": problem.field, "message": problem.message}
    return entry if problem.line is None else {**entry, "line": problem.line}


def _field_problem(error: Mapping[str, Any]) -> FieldProblem:
    field = ".".join(str(part) for part in error["loc"]) or "body"
    message = {"extra_forbidden": "There is no such field.", "missing": "This field is required."}.get(
        error["type"], str(error["msg"]).removeprefix("Value error, ")
    )
    return FieldProblem(shorten(field), shorten(message, 300))
