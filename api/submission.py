"""Submitting a job: validate -> route -> price -> reserve -> insert.

Everything before the insert is a pure function of the request and the catalogue. Submissions that arrive
together share one INSERT and one disk flush; the statement is its own transaction, so a caller that was
answered 202 finds its job after any crash. Where a budget covers a job, its reservation is made by the same
statement (:mod:`api.reserving`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncEngine

from api.auth import Caller
from api.bodies import JsonObject
from api.fields.chat import Surface
from api.fields.reading import read_request
from api.idempotency import digest_of, require_same
from api.jobview import Row
from api.reserving import Recorder, budget_exceeded
from api.schemas.requests import JobRequest
from models.catalog import Catalog
from models.database import dump_json, read_one
from models.errors import (
    CallbackUrlRefused,
    ContextLengthExceeded,
    CostCapExceeded,
    FieldProblem,
    Unavailable,
    ValidationFailed,
)
from models.estimates import most_of_answer
from models.ids import new_id
from models.job import PRIORITIES, SELECT_JOB, SELECT_JOB_BY_KEY
from models.pricing import Price, as_wire, worst_case
from models.reservation import Refusal
from models.routing import Ask, Route, Router
from models.tokens import fewest_tokens, most_tokens
from models.wakeups import Wakeups

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "stop", "seed")


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job that was asked for: its row, and whether this very request made it."""

    row: Row
    created: bool


def parse_request(body: JsonObject) -> JobRequest:
    """The request in a body; raises ValidationFailed or CallbackUrlRefused."""
    request = read_request(body, Surface.JOB)
    if request.callback_url is not None:
        raise CallbackUrlRefused("This version does not deliver webhooks yet.", param="callback_url")
    if request.conversation_id is not None:
        message = "This version does not keep conversations yet."
        raise ValidationFailed(message, param="conversation_id", problems=[FieldProblem("conversation_id", message)])
    return request


def plan_job(
    request: JobRequest,
    caller: Caller,
    catalog: Catalog,
    idempotency_key: str | None,
    router: Router | None = None,
) -> dict[str, Any]:  # Any: columns of several types
    """The row to insert for a request: pure, but for its new id and the time, of which prices depend.

    Raises ModelNotFound, ContextLengthExceeded or CostCapExceeded.
    """
    route = (router or Router(catalog)).route(_ask(request))
    llm_request = llm_request_of(request)
    _check_fit(request, route, catalog)
    reserved = _worst_case(request, llm_request, route, catalog)
    _check_cost(request, reserved)
    chosen = catalog.llms[route.chosen]
    return {
        "id": new_id(),
        "tenant_id": caller.tenant_id,
        "api_key_id": caller.api_key_id,
        "kind": "generation",
        "priority": PRIORITIES[request.priority],
        "model": request.model,
        "route": route.llms,
        "routing": route.as_wire(),
        "tier": chosen.tier,
        "queue": catalog.queue_of(route.chosen),
        "request": llm_request,
        "max_cost_usd": request.max_cost_usd,
        "reserved_usd": reserved,
        "end_user": request.user,
        "team": request.team,
        "labels": request.metadata,
        "idempotency_key": idempotency_key,
        "request_hash": request_hash(request) if idempotency_key else None,
        "expires_in": request.expires_in,
    }


def request_hash(request: JobRequest) -> str:
    """The digest of a request's canonical form, without what equals its default."""
    return digest_of(request.model_dump(exclude_defaults=True, by_alias=True))


class Submitter:
    """Records planned jobs, those of concurrent requests together."""

    def __init__(self, engine: AsyncEngine, wakeups: Wakeups, *, group_limit: int = 256, retry_s: float = 5.0) -> None:
        self._engine = engine
        self._recorder = Recorder(engine, wakeups, group_limit=group_limit, retry_s=retry_s)

    async def submit(self, job: Mapping[str, Any]) -> Submitted:  # Any: see plan_job
        """Record a planned job, or find the one that its idempotency key made before.

        Raises IdempotencyMismatch when that one was made by another body, BudgetExceeded, and Unavailable.
        """
        outcome = await self._recorder.record(job)
        if isinstance(outcome, Refusal):
            raise budget_exceeded(outcome)
        if outcome is not None:
            return Submitted(_fresh_row(job, outcome), created=True)
        row = await self._find(job)
        if row["id"] == job["id"]:
            return Submitted(row, created=True)
        require_same(row["request_hash"], job["request_hash"])
        return Submitted(row, created=False)

    async def _find(self, job: Mapping[str, Any]) -> RowMapping:
        if job["idempotency_key"] is None:
            row = await read_one(self._engine, SELECT_JOB, {"id": job["id"], "tenant_id": job["tenant_id"]})
        else:
            key = {"tenant_id": job["tenant_id"], "idempotency_key": job["idempotency_key"]}
            row = await read_one(self._engine, SELECT_JOB_BY_KEY, key)
        if row is None:  # deleted between the two statements, by retention
            raise Unavailable("The job of this Idempotency-Key was just removed; try again.", retry_after_s=1)
        return row


def _ask(request: JobRequest) -> Ask:
    return Ask(request.model, request.fallbacks, _texts(request), request.max_tokens, is_structured(request))


def llm_request_of(request: JobRequest) -> JsonObject:
    """What the worker sends to an LLM, as ``jobs.request`` keeps it."""
    wanted: JsonObject = {"messages": request.chat(), "max_tokens": request.max_tokens}
    for name in _SAMPLING:
        if (value := getattr(request, name)) is not None:
            wanted[name] = value
    if request.response_format is not None:
        wanted["response_format"] = request.response_format.model_dump(exclude_none=True, by_alias=True)
    if request.adjust:
        wanted["adjust"] = True
    return wanted


def _check_fit(request: JobRequest, route: Route, catalog: Catalog) -> None:
    """Refuse only what certainly fits no LLM of the route; the worker counts the rest exactly.

    Of a job that may be adjusted the prompt must fit: ``max_tokens`` sinks.
    """
    window = max(catalog.llms[name].context_window for name in route.llms)
    if request.max_tokens >= window and not request.adjust:
        raise ContextLengthExceeded(
            f"max_tokens is {request.max_tokens}; the largest context window of the route has {window}.",
            param="max_tokens",
        )
    prompt_tokens = fewest_tokens(_texts(request))
    if prompt_tokens + (1 if request.adjust else request.max_tokens) > window:
        raise ContextLengthExceeded(
            f"The prompt has at least {prompt_tokens} tokens; with max_tokens {request.max_tokens} that is"
            f" more than the largest context window of the route, {window}.",
            param="prompt" if request.messages is None else "messages",
        )


def _worst_case(request: JobRequest, wanted: JsonObject, route: Route, catalog: Catalog) -> Decimal:
    """The most that one attempt can cost, whichever LLM of the route makes it until the job expires."""
    texts = _texts(request)
    if structured := is_structured(request):
        texts.append(dump_json(wanted["response_format"]))
    prices = prices_of(route, catalog, request.expires_in)
    return worst_answer(most_tokens(texts), request.max_tokens, prices, structured=structured)


def prices_of(route: Route, catalog: Catalog, seconds: float) -> list[Price]:
    """Every price that applies to some LLM of a route from now until so many seconds later."""
    now = datetime.now(UTC)
    end = now + timedelta(seconds=seconds)
    return [price for name in route.llms for price in catalog.llms[name].tariff.between(now, end)]


def worst_answer(prompt_tokens: int, max_tokens: int, prices: Iterable[Price], *, structured: bool) -> Decimal:
    """The most that an answer can cost, in USD."""
    return worst_case(*most_of_answer(prompt_tokens, max_tokens, structured=structured), prices)


def is_structured(request: JobRequest) -> bool:
    """Whether the answer must have a form."""
    return request.response_format is not None and request.response_format.type != "text"


def _check_cost(request: JobRequest, worst: Decimal) -> None:
    if request.max_cost_usd is not None and worst > request.max_cost_usd:
        raise CostCapExceeded(
            f"The worst case costs {as_wire(worst)} USD, max_cost_usd is {as_wire(request.max_cost_usd)}.",
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
        "batch_id": None,
        "input_tokens": 0,
        "output_tokens": 0,
        "cost_usd": 0,
        "attempts": None,
    }
