"""Jobs: submit, read, list, cancel."""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, FastAPI, Query
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.auth import Caller
from api.bodies import read_json_object
from api.deps import CallerDep, JobId, Services, ServicesDep, services_of
from api.idempotency import KEY_HEADER, check_key
from api.jobaccess import ask_to_cancel, read_job
from api.jobview import Row, is_finished, job_resource, page, retry_after_s, status_url
from api.openapi import answer, body_of, header, refusals
from api.ratelimits import submit_within_limits
from api.responses import json_response
from api.schemas.jobs import JobList, JobResource
from api.schemas.requests import JobRequest
from api.submission import parse_request, plan_job
from api.waiting import wait_or_disconnect
from models.errors import FieldProblem, JobFinished, ValidationFailed
from models.ids import BATCH, JOB, from_wire, to_wire
from models.job import LIST_BATCH_JOBS, LIST_JOBS
from models.lifecycle import JobStatus

MAX_WAIT_S = 60
CANCEL_WAIT_S = 2.0
_PREFER_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})", re.IGNORECASE)


class DirectRoute(APIRoute):
    """A route whose endpoint takes the request as it is: documented like any other, at a third of the cost.

    FastAPI's dependencies, exit stacks and second layer of error handling are left out; the app's own layer
    handles what the endpoint raises.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:  # Any: as APIRoute's
        super().__init__(path, endpoint, **options)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            response: Response = await endpoint(Request(scope, receive, send))
            await response(scope, receive, send)

        self.app = app


router = APIRouter(tags=["Jobs"])

_EXAMPLE = {"prompt": "Explain in one sentence what a headrace is.", "max_tokens": 64}
_SUBMISSION_HEADERS = [
    KEY_HEADER,
    header("Prefer", f"`wait=N`: wait up to N seconds, {MAX_WAIT_S} at most, for the job to finish."),
]

Wait = Annotated[int, Query(ge=0, le=MAX_WAIT_S, description="Seconds to wait for the job to finish before answering.")]


async def submit_job(request: Request) -> Response:
    """Submit a job. It is recorded when the answer comes, whatever dies afterwards."""
    services = services_of(request)
    caller = await services.authenticator.authenticate(request)
    key = check_key(request.headers.get("idempotency-key"))
    body = await read_json_object(request, services.settings.max_body_bytes)
    job = plan_job(parse_request(body), caller, services.catalog, key, services.vitals.router)
    submitted, limits = await submit_within_limits(services.limiter, services.submitter, caller, job)
    row = submitted.row
    wait_s = preferred_wait_s(request)
    if wait_s:
        row = await wait_for_job(request, services, caller, row["id"], wait_s)
    headers = {"location": status_url(to_wire(JOB, row["id"])), **limits}
    if wait_s:
        headers["preference-applied"] = f"wait={wait_s}"
    if not submitted.created:
        headers["idempotent-replayed"] = "true"
    status = 202 if submitted.created and not (wait_s and is_finished(row)) else 200
    return job_response(row, status, headers)


_READ = {200: answer("The job as it is now.", JobResource, "Retry-After"), **refusals(404, 422)}


@router.get("/status/{job_id}", responses=_READ)
@router.get("/v1/jobs/{job_id}", responses=_READ)
async def get_job(
    request: Request, services: ServicesDep, caller: CallerDep, job_id: JobId, wait: Wait = 0
) -> Response:
    """Read a job; with ``wait``, as soon as it finishes or the time is over."""
    row = await read_job(services, caller, job_id)
    if wait and not is_finished(row):
        row = await wait_for_job(request, services, caller, job_id, wait)
    return job_response(row)


@router.get("/v1/jobs", responses={200: answer("A page of jobs.", JobList), **refusals(422)})
async def list_jobs(
    services: ServicesDep,
    caller: CallerDep,
    status: JobStatus | None = None,
    batch_id: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: str | None = None,
) -> Response:
    """List jobs, newest first."""
    params = {"tenant_id": caller.tenant_id, "after": _cursor(after), "limit": limit + 1}
    if batch_id is None:
        rows = await services.reads.read_all(caller.tenant_id, LIST_JOBS[status], params)
    else:
        batch = from_wire(BATCH, batch_id)
        statement = LIST_BATCH_JOBS[status]
        rows = await services.reads.read_all(caller.tenant_id, statement, params | {"batch_id": batch}) if batch else []
    return json_response(page(rows, limit))


@router.post(
    "/v1/jobs/{job_id}/cancel",
    responses={200: answer("The job, cancelled or about to be.", JobResource), **refusals(404, 409)},
)
async def cancel_job(request: Request, services: ServicesDep, caller: CallerDep, job_id: JobId) -> Response:
    """Cancel a job: one that waits at once, one that runs as soon as its worker has stopped it."""
    status = await ask_to_cancel(services, caller, job_id)
    if status is None:
        row = await read_job(services, caller, job_id)
        raise JobFinished(f"The job is {row['status']}.")
    if status is JobStatus.CANCELLED:
        return job_response(await read_job(services, caller, job_id))
    return job_response(await wait_for_job(request, services, caller, job_id, CANCEL_WAIT_S))


def install_submission(app: FastAPI) -> None:
    """Serve submissions from the app's own router, and first: an included router matches each request
    again."""
    app.router.add_api_route(
        "/v1/jobs",
        submit_job,
        methods=["POST"],
        status_code=202,
        tags=["Jobs"],
        route_class_override=DirectRoute,
        responses={
            200: answer("The job of this Idempotency-Key, or finished in time.", JobResource, "Idempotent-Replayed"),
            202: answer(
                "The job is recorded.", JobResource, "Location", "Retry-After", "RateLimit", "RateLimit-Policy"
            ),
            **refusals(402, 404, 413, 415, 422, 429),
        },
        openapi_extra={"requestBody": body_of(JobRequest, _EXAMPLE), "parameters": _SUBMISSION_HEADERS},
    )


async def wait_for_job(request: Request, services: Services, caller: Caller, job_id: UUID, timeout_s: float) -> Row:
    """The job's row once it has finished, or as it is after ``timeout_s``."""
    with services.waiters.watch(job_id) as finished:
        row = await read_job(services, caller, job_id)
        if is_finished(row):
            return row
        await wait_or_disconnect(request, finished, timeout_s)
    return await read_job(services, caller, job_id)


def preferred_wait_s(request: Request, most_s: float = MAX_WAIT_S) -> int:
    """The seconds of ``Prefer: wait=N``, at most ``most_s``; 0 when the caller does not prefer to wait."""
    prefer = request.headers.get("prefer")
    found = _PREFER_WAIT.search(prefer) if prefer else None
    return min(int(found[1]), int(most_s)) if found else 0


def job_response(row: Row, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A job resource, with ``Retry-After`` while it is unfinished."""
    retry = {} if is_finished(row) else {"retry-after": str(retry_after_s(row))}
    return json_response(job_resource(row), status, {**retry, **(headers or {})})


def _cursor(after: str | None) -> UUID | None:
    if after is None:
        return None
    cursor = from_wire(JOB, after)
    if cursor is None:
        message = "This is not the id of a job."
        raise ValidationFailed(message, param="after", problems=[FieldProblem("after", message)])
    return cursor
