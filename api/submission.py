"""Submitting a job: validate -> route -> price -> insert.

Everything before the insert is a pure function of the request and the catalogue. Submissions that arrive
together share one INSERT and one disk flush; the statement is its own transaction, so a caller that was
answered 202 finds its job after any crash. A budget's reservation belongs into that same statement.
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import orjson
import structlog
from pydantic import ValidationError
from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncEngine

from api.auth import Caller
from api.bodies import JsonObject
from api.errors import validation_failed
from api.jobview import Row
from api.schemas import JobRequest
from models.catalog import Catalog
from models.database import dump_json, fetch_all, is_transient, is_unavailable, read_one
from models.errors import (
    CallbackUrlRefused,
    ContextLengthExceeded,
    CostCapExceeded,
    FieldProblem,
    IdempotencyMismatch,
    Unavailable,
    ValidationFailed,
)
from models.grouping import GroupCommit
from models.ids import new_id
from models.job import INSERT_JOBS, PRIORITIES, SELECT_JOB, SELECT_JOB_BY_KEY
from models.pricing import Price, as_wire, worst_case
from models.routing import Route, choose_route
from models.tokens import fewest_tokens, most_tokens
from models.wakeups import DUE, Wakeups

MAX_KEY_LENGTH = 255
_RETRY_PAUSE_S = 0.1
_SAMPLING = ("temperature", "top_p", "stop", "seed")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job that was asked for: its row, and whether this very request made it."""

    row: Row
    created: bool


def parse_request(body: JsonObject) -> JobRequest:
    """The request in a body; raises ValidationFailed or CallbackUrlRefused."""
    try:
        request = JobRequest.model_validate(body)
    except ValidationError as error:
        raise validation_failed(error.errors(include_url=False, include_input=False)) from None
    if request.callback_url is not None:
        raise CallbackUrlRefused("This version does not deliver webhooks yet.", param="callback_url")
    if request.conversation_id is not None:
        message = "This version does not keep conversations yet."
        raise ValidationFailed(message, param="conversation_id", problems=[FieldProblem("conversation_id", message)])
    return request


def check_key(key: str | None) -> str | None:
    """A usable Idempotency-Key, or None when the caller sent none; raises ValidationFailed."""
    if key is None or (1 <= len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable()):
        return key
    message = f"The Idempotency-Key must have 1 to {MAX_KEY_LENGTH} printable ASCII characters."
    raise ValidationFailed(message, param="Idempotency-Key", problems=[FieldProblem("Idempotency-Key", message)])


def plan_job(
    request: JobRequest, caller: Caller, catalog: Catalog, idempotency_key: str | None
) -> dict[str, Any]:  # Any: columns of several types
    """The row to insert for a request: pure, but for its new id.

    Raises ModelNotFound, ContextLengthExceeded or CostCapExceeded.
    """
    route = choose_route(catalog, request.model, request.fallbacks)
    llm_request = _llm_request(request)
    _check_fit(request, route, catalog)
    _check_cost(request, llm_request, route, catalog)
    chosen = catalog.llms[route.chosen]
    return {
        "id": new_id(),
        "tenant_id": caller.tenant_id,
        "api_key_id": caller.api_key_id,
        "kind": "generation",
        "priority": PRIORITIES[request.priority],
        "model": request.model,
        "route": route.llms,
        "tier": chosen.tier,
        "queue": catalog.queue_of(route.chosen),
        "request": llm_request,
        "max_cost_usd": request.max_cost_usd,
        "end_user": request.user,
        "team": request.team,
        "labels": request.metadata,
        "idempotency_key": idempotency_key,
        "request_hash": request_hash(request).hex() if idempotency_key else None,
        "expires_in": request.expires_in,
    }


def request_hash(request: JobRequest) -> bytes:
    """SHA-256 of a request's canonical form: sorted keys, without what equals its default."""
    canonical = request.model_dump(exclude_defaults=True, by_alias=True)
    return hashlib.sha256(orjson.dumps(canonical, default=str, option=orjson.OPT_SORT_KEYS)).digest()


class Submitter:
    """Records planned jobs, those of concurrent requests together."""

    def __init__(self, engine: AsyncEngine, wakeups: Wakeups, *, group_limit: int = 256, retry_s: float = 5.0) -> None:
        self._engine = engine
        self._wakeups = wakeups
        self._retry_s = retry_s
        self._group: GroupCommit[Mapping[str, Any], RowMapping | None] = GroupCommit(  # Any: see plan_job
            self._insert, limit=group_limit, shared_fate=_is_shared
        )

    async def submit(self, job: Mapping[str, Any]) -> Submitted:  # Any: see plan_job
        """Record a planned job, or find the one that its idempotency key made before.

        Raises IdempotencyMismatch when that one was made by another body, and Unavailable.
        """
        recorded = await self._group.submit(job)
        if recorded is not None:
            return Submitted(_fresh_row(job, recorded), created=True)
        row = await self._find(job)
        if row["id"] == job["id"]:
            return Submitted(row, created=True)
        if row["request_hash"] != job["request_hash"]:
            raise IdempotencyMismatch(
                "This Idempotency-Key was used with another request body; use a new key for a new request.",
                param="Idempotency-Key",
            )
        return Submitted(row, created=False)

    async def _insert(self, jobs: Sequence[Mapping[str, Any]]) -> Sequence[RowMapping | None]:
        """One group: what was recorded of each job, None for one that exists already."""
        params = {"rows": dump_json(jobs)}
        rows = {row["id"]: row for row in await self._insert_surely(params)}
        if rows:
            self._wakeups.announce(DUE)
        return [rows.get(job["id"]) for job in jobs]

    async def _insert_surely(self, params: Mapping[str, str]) -> Sequence[RowMapping]:
        """Run the INSERT; again, while nobody knows whether it was done, since a job id is inserted once.

        Raises Unavailable: at once when nothing was sent, else when ``retry_s`` have passed.
        """
        deadline = monotonic() + self._retry_s
        sent = False
        while True:
            try:
                return await fetch_all(self._engine, INSERT_JOBS, params)
            except Exception as error:
                if not (is_unavailable(error) or is_transient(error)):
                    raise
                sent = sent or _was_sent(error)
                if not sent or monotonic() >= deadline:
                    log.warning("submit.postgres_away", error=str(error).partition("\n")[0], sent=sent)
                    raise _unavailable(sent) from error
            await asyncio.sleep(_RETRY_PAUSE_S)

    async def _find(self, job: Mapping[str, Any]) -> RowMapping:
        if job["idempotency_key"] is None:
            row = await read_one(self._engine, SELECT_JOB, {"id": job["id"], "tenant_id": job["tenant_id"]})
        else:
            key = {"tenant_id": job["tenant_id"], "idempotency_key": job["idempotency_key"]}
            row = await read_one(self._engine, SELECT_JOB_BY_KEY, key)
        if row is None:  # deleted between the two statements, by retention
            raise Unavailable("The job of this Idempotency-Key was just removed; try again.", retry_after_s=1)
        return row


def _llm_request(request: JobRequest) -> JsonObject:
    wanted: JsonObject = {"messages": request.chat(), "max_tokens": request.max_tokens}
    for name in _SAMPLING:
        if (value := getattr(request, name)) is not None:
            wanted[name] = value
    if request.response_format is not None:
        wanted["response_format"] = request.response_format.model_dump(exclude_none=True, by_alias=True)
    return wanted


def _check_fit(request: JobRequest, route: Route, catalog: Catalog) -> None:
    """Refuse only what certainly fits no LLM of the route; the worker counts the rest exactly."""
    window = max(catalog.llms[name].context_window for name in route.llms)
    if request.max_tokens >= window:
        raise ContextLengthExceeded(
            f"max_tokens is {request.max_tokens}; the largest context window of the route has {window}.",
            param="max_tokens",
        )
    prompt_tokens = fewest_tokens(_texts(request))
    if prompt_tokens + request.max_tokens > window:
        raise ContextLengthExceeded(
            f"The prompt has at least {prompt_tokens} tokens; with max_tokens {request.max_tokens} that is"
            f" more than the largest context window of the route, {window}.",
            param="prompt" if request.messages is None else "messages",
        )


def _check_cost(request: JobRequest, llm_request: JsonObject, route: Route, catalog: Catalog) -> None:
    if request.max_cost_usd is None:
        return
    texts = _texts(request)
    if request.response_format is not None:
        texts.append(dump_json(llm_request["response_format"]))
    prices = [Price(llm.input_price, llm.output_price) for llm in map(catalog.llms.__getitem__, route.llms)]
    dearest = worst_case(most_tokens(texts), request.max_tokens, prices)
    if dearest > request.max_cost_usd:
        raise CostCapExceeded(
            f"The worst case costs {as_wire(dearest)} USD, max_cost_usd is {as_wire(request.max_cost_usd)}.",
            param="max_cost_usd",
        )


def _texts(request: JobRequest) -> list[str]:
    if request.messages is None:
        return [request.prompt or ""]
    return [message.content for message in request.messages]


def _fresh_row(job: Mapping[str, Any], recorded: RowMapping) -> Row:
    """The row as SELECT_JOB would give it, without asking: a job nobody can have claimed yet."""
    return {
        **job,
        "status": "queued",
        "created_at": recorded["created_at"],
        "expires_at": recorded["expires_at"],
        "next_attempt_at": recorded["created_at"],
        "started_at": None,
        "finished_at": None,
        "result": None,
        "error": None,
        "input_tokens": 0,
        "output_tokens": 0,
        "cost_usd": 0,
        "attempts": None,
    }


def _was_sent(error: Exception) -> bool:
    """Whether the statement may have reached Postgres: SQLAlchemy names it in errors of its execution
    only."""
    return getattr(error, "statement", None) is not None


def _is_shared(error: BaseException) -> bool:
    return isinstance(error, Unavailable)


def _unavailable(sent: bool) -> Unavailable:
    if sent:
        detail = (
            "Postgres went away while the job was being recorded: whether it was is unknown."
            " Send the request again with the same Idempotency-Key; without a key, it may be recorded twice."
        )
    else:
        detail = "Postgres cannot be reached; nothing was recorded."
    return Unavailable(detail, retry_after_s=1)
