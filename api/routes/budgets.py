"""Budgets: put, read, list, delete."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import Response

from api.auth import Caller
from api.bodies import read_json_object
from api.deps import BudgetId, CallerDep, Services, ServicesDep
from api.errors import validation_failed
from api.jobview import timestamp
from api.openapi import answer, body_of, refusals
from api.responses import json_response
from api.schemas.budgets import BudgetList, BudgetRequest, BudgetResource
from models.budget import (
    DELETE_BUDGET,
    LIST_BUDGETS,
    PUT_BUDGET,
    PUT_PERIOD,
    RAISE_DUE,
    SELECT_BUDGET,
    SELECT_KEY_OF_TENANT,
)
from models.database import read_one, transaction
from models.errors import FieldProblem, NotFound, ValidationFailed
from models.ids import BUDGET, from_wire, new_id, to_wire
from models.pricing import as_wire

router = APIRouter(tags=["Budgets"])

_EXAMPLE = {"scope": "team", "subject": "search", "window": "day", "limit_usd": "1.00", "alert_at": 0.8}
_GONE = "There is no such budget."


@router.put(
    "/v1/budgets",
    responses={200: answer("The budget as it is now.", BudgetResource), **refusals(413, 415, 422)},
    openapi_extra={"requestBody": body_of(BudgetRequest, _EXAMPLE)},
)
async def put_budget(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Create a budget, or change the one of the same scope, subject and window.

    It covers the jobs submitted from now on. A new one starts with what was spent in its current period; what
    running jobs may yet cost is not counted. One that is lowered leaves reserved what is reserved.
    """
    wanted = _parse(await read_json_object(request, services.settings.max_body_bytes))
    await _check_subject(services, caller, wanted)
    async with services.control.one_of(caller.tenant_id), transaction(services.pools.control) as connection:
        budget_id = await _put(connection, caller.tenant_id, wanted)
    return json_response(budget_resource(await _read(services, caller, budget_id)))


@router.get("/v1/budgets", responses={200: answer("A page of budgets.", BudgetList), **refusals(422)})
async def list_budgets(
    services: ServicesDep,
    caller: CallerDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: str | None = None,
) -> Response:
    """List budgets, oldest first."""
    params = {"tenant_id": caller.tenant_id, "after": _cursor(after), "limit": limit + 1}
    rows = await services.reads.read_all(caller.tenant_id, LIST_BUDGETS, params)
    data = [budget_resource(row) for row in rows[:limit]]
    return json_response(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": len(rows) > limit,
        }
    )


@router.get("/v1/budgets/{budget_id}", responses={200: answer("The budget.", BudgetResource), **refusals(404)})
async def get_budget(services: ServicesDep, caller: CallerDep, budget_id: BudgetId) -> Response:
    """Read a budget."""
    return json_response(budget_resource(await _read(services, caller, budget_id)))


@router.delete("/v1/budgets/{budget_id}", status_code=204, responses=refusals(404))
async def delete_budget(services: ServicesDep, caller: CallerDep, budget_id: BudgetId) -> Response:
    """Delete a budget; the jobs that it covered go on."""
    params = {"id": budget_id, "tenant_id": caller.tenant_id}
    async with services.control.one_of(caller.tenant_id):
        deleted = await read_one(services.pools.control, DELETE_BUDGET, params)
    if deleted is None:
        raise NotFound(_GONE)
    return Response(status_code=204)


def budget_resource(row: Mapping[Any, Any]) -> dict[str, Any]:  # Any: columns of several types; JSON
    """The budget resource of a row of SELECT_BUDGET."""
    left = row["limit_usd"] - row["spent_usd"] - row["reserved_usd"]
    return {
        "id": to_wire(BUDGET, row["id"]),
        "object": "budget",
        "scope": row["scope"],
        "subject": row["subject"],
        "window": row["window"],
        "limit_usd": as_wire(row["limit_usd"]),
        "spent_usd": as_wire(row["spent_usd"]),
        "reserved_usd": as_wire(row["reserved_usd"]),
        "remaining_usd": as_wire(max(left, Decimal(0))),
        "alert_at": float(row["alert_at"]),
        "resets_at": None if row["resets_at"] is None else timestamp(row["resets_at"]),
    }


def _parse(body: Mapping[str, Any]) -> BudgetRequest:  # Any: JSON
    try:
        return BudgetRequest.model_validate(body)
    except ValidationError as error:
        raise validation_failed(error.errors(include_url=False, include_input=False)) from None


async def _check_subject(services: Services, caller: Caller, wanted: BudgetRequest) -> None:
    """A key must be one of the tenant's: a typing mistake would make a budget that covers nothing."""
    if wanted.scope != "key":
        return
    params = {"subject": wanted.subject, "tenant_id": caller.tenant_id}
    if await read_one(services.pools.light, SELECT_KEY_OF_TENANT, params) is None:
        message = "There is no such API key; send what stands between `hr_` and the next `_`."
        raise ValidationFailed(message, param="subject", problems=[FieldProblem("subject", message)])


async def _put(connection: AsyncConnection, tenant_id: UUID, wanted: BudgetRequest) -> UUID:
    values = {"id": new_id(), "tenant_id": tenant_id, **wanted.model_dump()}
    budget = (await connection.execute(PUT_BUDGET, values)).mappings().one()
    period = await connection.execute(PUT_PERIOD, {"id": budget["id"], "created": budget["created"]})
    await connection.execute(RAISE_DUE, {"period_id": period.scalar_one()})
    return UUID(str(budget["id"]))


async def _read(services: Services, caller: Caller, budget_id: UUID) -> Mapping[Any, Any]:  # Any: several types
    row = await read_one(services.pools.light, SELECT_BUDGET, {"id": budget_id, "tenant_id": caller.tenant_id})
    if row is None:
        raise NotFound(_GONE)
    return row


def _cursor(after: str | None) -> UUID | None:
    if after is None:
        return None
    cursor = from_wire(BUDGET, after)
    if cursor is None:
        message = "This is not the id of a budget."
        raise ValidationFailed(message, param="after", problems=[FieldProblem("after", message)])
    return cursor
