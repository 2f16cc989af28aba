"""Batches: read, list, pause, resume, cancel, retry."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from starlette.responses import Response

from api.auth import Caller
from api.batches.control import BatchControl
from api.batches.quotas import RowQuota
from api.batches.view import RATE_S, batch_to_wire
from api.deps import BatchId, CallerDep, Services, ServicesDep
from api.openapi import answer, refusals
from api.responses import json_response, listed
from api.schemas.batches import BatchList, BatchResource
from models.batch import LIST_BATCHES, SELECT_BATCH
from models.database import read_one
from models.errors import FieldProblem, NotFound, ValidationFailed
from models.ids import BATCH, from_wire
from models.rerun import NOT_COMPLETED

router = APIRouter(prefix="/v1/batches", tags=["Batches"])


@router.get("", responses={200: answer("A page of batches.", BatchList), **refusals(422)})
async def list_batches(
    services: ServicesDep,
    caller: CallerDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: str | None = None,
) -> Response:
    """List batches, newest first."""
    cursor = None if after is None else from_wire(BATCH, after)
    if after is not None and cursor is None:
        message = "This is not the id of a batch."
        raise ValidationFailed(message, param="after", problems=[FieldProblem("after", message)])
    params = {"tenant_id": caller.tenant_id, "after": cursor, "limit": limit + 1, "rate_s": RATE_S}
    rows = await services.reads.read_all(caller.tenant_id, LIST_BATCHES, params)
    return json_response(listed([batch_to_wire(row) for row in rows], limit))


_BATCH = answer("The batch as it is now.", BatchResource)


@router.get("/{batch_id}", responses={200: _BATCH, **refusals(404)})
async def get_batch(services: ServicesDep, caller: CallerDep, batch_id: BatchId) -> Response:
    """Read a batch; its counts are exact at any time."""
    return await batch_response(services, caller, batch_id)


@router.post("/{batch_id}/pause", responses={200: _BATCH, **refusals(404, 409)})
async def pause_batch(services: ServicesDep, caller: CallerDep, batch_id: BatchId) -> Response:
    """Let no further row start. Rows that run go on to their ends."""
    await _control(services).pause(caller.tenant_id, batch_id)
    return await batch_response(services, caller, batch_id)


@router.post("/{batch_id}/resume", responses={200: _BATCH, **refusals(402, 404, 409)})
async def resume_batch(services: ServicesDep, caller: CallerDep, batch_id: BatchId) -> Response:
    """Let the rows of a paused batch start again."""
    await _control(services).resume(caller.tenant_id, batch_id)
    return await batch_response(services, caller, batch_id)


@router.post("/{batch_id}/cancel", responses={200: _BATCH, **refusals(404, 409)})
async def cancel_batch(services: ServicesDep, caller: CallerDep, batch_id: BatchId) -> Response:
    """End a batch: rows that run are stopped, finished ones stay."""
    await _control(services).cancel(caller.tenant_id, batch_id)
    return await batch_response(services, caller, batch_id)


@router.post("/{batch_id}/retry", responses={200: _BATCH, **refusals(402, 404, 409, 422, 429)})
async def retry_batch(
    services: ServicesDep,
    caller: CallerDep,
    batch_id: BatchId,
    status: Annotated[
        str | None, Query(description="Which rows, separated by commas: `failed`, `cancelled`, `expired`; all of them.")
    ] = None,
) -> Response:
    """Run the rows again that ended without an answer. They reserve anew, as a whole; a batch that had ended gets a
    fresh deadline."""
    quota = RowQuota(services.limiter, caller.plan, caller.api_key_id)
    await _control(services).retry(caller.tenant_id, batch_id, quota, _statuses(status))
    return await batch_response(services, caller, batch_id)


async def batch_response(
    services: Services, caller: Caller, batch_id: UUID, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """The resource of the caller's batch; raises NotFound, for another tenant's too."""
    params = {"id": batch_id, "tenant_id": caller.tenant_id, "rate_s": RATE_S}
    row = await read_one(services.pools.light, SELECT_BATCH, params)
    if row is None:
        raise NotFound("There is no such batch.")
    return json_response(batch_to_wire(row), status, headers)


def _control(services: Services) -> BatchControl:
    return BatchControl(services.pools.control, services.wakeups, services.control)


def _statuses(status: str | None) -> set[str]:
    if status is None:
        return set(NOT_COMPLETED)
    statuses = {part.strip() for part in status.split(",")}
    if not statuses <= set(NOT_COMPLETED):
        message = f"Name some of {', '.join(NOT_COMPLETED)}, separated by commas."
        raise ValidationFailed(message, param="status", problems=[FieldProblem("status", message)])
    return statuses
