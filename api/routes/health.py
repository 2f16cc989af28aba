"""Health and metrics, for probes and scrapers: nothing about any tenant.

Anyone may know whether the system is well. What it consists of, and its metrics, are for callers with an API key and
for the networks of ``HEADRACE_METRICS_ALLOW``.
"""

from fastapi import APIRouter
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import Response

from api.access import comes_from
from api.deps import Services, ServicesDep
from api.metrics import CONTENT_TYPE, exposition
from api.openapi import answer, refusals
from api.responses import json_response
from api.schemas.health import HealthReport

router = APIRouter(tags=["Health"])


@router.get("/livez", responses={200: answer("The process answers.", HealthReport)})
async def livez() -> Response:
    """Whether this process answers at all."""
    return json_response({"status": "ok", "parts": {}})


@router.get(
    "/readyz",
    responses={
        200: answer("Requests can be served; without Redis they are, with slower wake-ups.", HealthReport),
        503: answer("Postgres is away or its schema is older than this version's.", HealthReport),
    },
)
async def readyz(services: ServicesDep) -> Response:
    """Whether this process can serve: Postgres and its schema; Redis is reported, and only hastens. A Postgres that
    takes no writes (`read_only`) is `degraded`: what is recorded can be read, and submissions are to come again."""
    report = await services.health.stores()
    return json_response(report.as_wire(), 503 if report.status == "down" else 200)


@router.get(
    "/health",
    responses={
        200: answer("Every part is there.", HealthReport),
        503: answer("Some part is missing: `degraded` still records jobs, `down` does not.", HealthReport),
    },
)
async def health(request: Request, services: ServicesDep) -> Response:
    """Every part: stores, schema, relay, a live worker for each queue, and each LLM's circuit breaker. Without a key,
    or an address that may see the parts, the status alone."""
    report = await services.health.everything()
    shown = report.as_wire() if await _may_see_parts(request, services) else {"status": report.status}
    return json_response(shown, 200 if report.status == "ok" else 503)


@router.get(
    "/metrics",
    responses={200: {"description": "Prometheus text.", "content": {"text/plain": {}}}, **refusals()},
)
async def metrics(request: Request, services: ServicesDep) -> Response:
    """The metrics of this process and of the queues; with a key, or from an address that may see them."""
    if not comes_from(request, services.metrics_networks):
        await services.authenticator.authenticate(request)
    text = exposition(services.traffic, services.waiters.count, await services.health.snapshot(), services.vitals)
    return Response(text, headers={"content-type": CONTENT_TYPE})


async def _may_see_parts(request: Request, services: Services) -> bool:
    """Raises InvalidApiKey for a key that is none; one that cannot be looked up now shows nothing."""
    if comes_from(request, services.metrics_networks):
        return True
    if "authorization" not in request.headers:
        return False
    try:
        await services.authenticator.authenticate(request)
    except (SQLAlchemyError, OSError):
        return False
    return True
