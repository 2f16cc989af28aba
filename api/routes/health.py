"""Health and metrics, for probes and scrapers: no authentication, nothing about any tenant."""

from fastapi import APIRouter
from starlette.responses import Response

from api.deps import ServicesDep
from api.metrics import CONTENT_TYPE, exposition
from api.openapi import answer
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
        503: answer("Postgres is away or its schema is not the one of this version.", HealthReport),
    },
)
async def readyz(services: ServicesDep) -> Response:
    """Whether this process can serve: Postgres and its schema; Redis is reported, and only hastens."""
    report = await services.health.stores()
    return json_response(report.as_wire(), 503 if report.status == "down" else 200)


@router.get(
    "/health",
    responses={
        200: answer("Every part is there.", HealthReport),
        503: answer("Some part is missing: `degraded` still records jobs, `down` does not.", HealthReport),
    },
)
async def health(services: ServicesDep) -> Response:
    """Every part: stores, schema, relay, a live worker for each queue, and each LLM's circuit breaker."""
    report = await services.health.everything()
    return json_response(report.as_wire(), 200 if report.status == "ok" else 503)


@router.get("/metrics", responses={200: {"description": "Prometheus text.", "content": {"text/plain": {}}}})
async def metrics(services: ServicesDep) -> Response:
    """The metrics of this process and of the queues."""
    text = exposition(services.traffic, services.waiters.count, await services.health.snapshot(), services.vitals)
    return Response(text, headers={"content-type": CONTENT_TYPE})
