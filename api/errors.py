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
from models.database import WAITING_HELPS, classify
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
    app.add_exception_handler(SQLAlchemyError, _on_store_error)
    app.add_exception_handler(OSError, _on_store_error)


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
    detail = f"There is nothing at {shorten(request.url.path)}." if error.status_code == 404 else str(error.detail)
    if error.status_code == 405:
        detail = f"{request.method} is not possible here."
    code = _CODES.get(error.status_code, title.lower().replace(" ", "_"))
    return problem_response(error.status_code, code, title, detail, headers=error.headers)


async def _on_invalid_parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return refusal_response(validation_failed([{**entry, "loc": entry["loc"][1:]} for entry in error.errors()]))


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _on_store_error(request: Request, error: Exception) -> Response:
    if classify(error) not in WAITING_HELPS:
        raise error
    log.warning("api.postgres_away", path=request.url.path, error=str(error).partition("\n")[0])
    return refusal_response(Unavailable("Postgres cannot be reached; try again shortly.", retry_after_s=1))


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
