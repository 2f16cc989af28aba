"""Health endpoints and metrics: what they say of the parts that are there, and of those that are not."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import redis
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.app import create_app
from api.local.ports import choose_port
from api.settings import ApiSettings
from models.breakers import SharedBreakers, rules_of
from models.database import fetch_all, newest_revision
from models.ids import new_id
from models.performance import SELECT_PERFORMANCE, WINDOW_S, performance_params, to_vitals
from models.process import DEREGISTER, REGISTER
from models.routing import Vitals
from models.shared import Shared
from tests.api.acting import Json, Tenant, Worker, serving, submit, until

Register = Callable[..., Awaitable[None]]

pytestmark = pytest.mark.anyio


@pytest.fixture
def anonymous(client: httpx.AsyncClient) -> httpx.AsyncClient:
    del client.headers["authorization"]
    return client


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.health.FRESH_S", 0)


async def test_the_process_is_alive(anonymous: httpx.AsyncClient) -> None:
    response = await anonymous.get("/livez")
    assert (response.status_code, response.json()) == (200, {"status": "ok", "parts": {}})


async def test_ready_with_postgres_redis_and_the_schema(anonymous: httpx.AsyncClient) -> None:
    response = await anonymous.get("/readyz")
    revision = newest_revision()
    assert (response.status_code, response.json()) == (
        200,
        {
            "status": "ok",
            "parts": {
                "postgres": {"status": "ok"},
                "redis": {"status": "ok"},
                "migrations": {"status": "ok", "found": revision, "expected": revision},
            },
        },
    )


async def read(settings: ApiSettings, tenant: Tenant, path: str, **changes: str) -> tuple[int, Json]:
    """What a path answers in an app whose settings were changed."""
    app = create_app(settings.model_copy(update=changes))
    async with app.router.lifespan_context(app), serving(app, tenant) as client:
        response = await client.get(path)
        return response.status_code, response.json()


async def test_ready_without_redis_which_only_hastens(settings: ApiSettings, tenant: Tenant) -> None:
    nowhere = f"redis://127.0.0.1:{choose_port('127.0.0.1', [])}/0"
    status, report = await read(settings, tenant, "/readyz", redis_url=nowhere)
    assert (status, report["status"]) == (200, "degraded")
    assert report["parts"]["redis"] == {"status": "down"}


@pytest.mark.parametrize("path", ["/readyz", "/health"])
async def test_not_ready_without_postgres(settings: ApiSettings, tenant: Tenant, path: str) -> None:
    nowhere = f"postgresql+psycopg://nobody@127.0.0.1:{choose_port('127.0.0.1', [])}/none"
    status, report = await read(settings, tenant, path, database_url=nowhere)
    assert (status, report["status"]) == (503, "down")
    assert report["parts"]["postgres"] == {"status": "down"}


@pytest.mark.parametrize(
    ("change", "undo"),
    [
        (
            "UPDATE alembic_version SET version_num = 'older'",
            "UPDATE alembic_version SET version_num = :revision",
        ),
        ("ALTER TABLE alembic_version RENAME TO gone", "ALTER TABLE gone RENAME TO alembic_version"),
    ],
)
async def test_not_ready_on_another_schema(
    client: httpx.AsyncClient, engine: AsyncEngine, change: str, undo: str
) -> None:
    await fetch_all(engine, text(change))
    try:
        response = await client.get("/readyz")
    finally:
        await fetch_all(engine, text(undo), {"revision": newest_revision()} if ":revision" in undo else None)
    report = response.json()
    assert (response.status_code, report["status"]) == (503, "down")
    assert report["parts"]["postgres"]["status"] == "ok"
    assert report["parts"]["migrations"]["status"] == "down"
    assert (await client.get("/readyz")).status_code == 200


@pytest.fixture
async def processes(engine: AsyncEngine) -> AsyncIterator[Register]:
    """Register processes by (role, queues, capacity, lease); removes them afterwards."""
    ids = []

    async def register(role: str, queues: list[str], capacity: int = 4, lease_s: float = 60) -> None:
        ids.append(new_id())
        params = {"id": ids[-1], "role": role, "name": role, "queues": queues, "capacity": capacity}
        await fetch_all(engine, REGISTER, params | {"lease_s": lease_s})

    yield register
    for process_id in ids:
        await fetch_all(engine, DEREGISTER, {"id": process_id})


async def test_health_names_each_missing_part(anonymous: httpx.AsyncClient, processes: Register) -> None:
    await processes("worker", ["small"])
    await processes("worker", ["large"], lease_s=-1)
    response = await anonymous.get("/health")
    report = response.json()
    assert (response.status_code, report["status"]) == (503, "degraded")
    assert report["parts"]["relay"] == {"status": "down", "processes": 0}
    assert report["parts"]["queue:small"] == {"status": "ok", "capacity": 4}
    large = report["parts"]["queue:large"]
    assert (large["status"], large["capacity"]) == ("down", 0)
    assert large["problem"] == "no worker of the pool remote serves it; its jobs wait"


async def test_health_counts_the_jobs_that_wait_for_a_worker(client: httpx.AsyncClient, processes: Register) -> None:
    await processes("worker", ["small"])
    before = (await client.get("/health")).json()["parts"]["queue:large"]["waiting"]
    await submit(client, model="large")
    assert (await client.get("/health")).json()["parts"]["queue:large"]["waiting"] == before + 1


async def test_all_is_well_with_a_relay_and_a_worker_for_each_queue(
    anonymous: httpx.AsyncClient, processes: Register
) -> None:
    await processes("relay", [])
    await processes("worker", ["small", "large"])
    response = await anonymous.get("/health")
    assert (response.status_code, response.json()["status"]) == (200, "ok")


def samples(exposition: str) -> dict[tuple[str, str], float]:
    """The exposition's values by name and the values of the labels."""
    return {
        (sample.name, "/".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


async def test_metrics_count_requests_jobs_and_processes(client: httpx.AsyncClient, processes: Register) -> None:
    await processes("relay", [])
    await processes("worker", ["small"], capacity=7)
    before = samples((await client.get("/metrics")).text)
    await submit(client)
    await client.request("BREW", "/nothing")
    response = await client.get("/metrics")
    after = samples(response.text)
    assert response.headers["content-type"].startswith("text/plain")
    assert after["headrace_http_request_seconds_count", "POST//v1/jobs/202"] == 1
    assert after["headrace_http_request_seconds_count", "OTHER/unmatched/404"] == 1
    waiting = ("headrace_jobs", "small/waiting")
    assert after[waiting] == before[waiting] + 1
    assert after["headrace_processes", "relay"] == 1
    assert after["headrace_capacity", "small"] == 7
    assert after["headrace_postgres_up", ""] == 1


async def test_metrics_without_postgres_are_those_of_the_process(settings: ApiSettings, tenant: Tenant) -> None:
    nowhere = f"postgresql+psycopg://nobody@127.0.0.1:{choose_port('127.0.0.1', [])}/none"
    app = create_app(settings.model_copy(update={"database_url": nowhere}))
    async with app.router.lifespan_context(app), serving(app, tenant) as client:
        found = samples((await client.get("/metrics")).text)
    assert found["headrace_postgres_up", ""] == 0


async def test_an_open_breaker_shows_in_health_metrics_and_routing(
    settings: ApiSettings, tenant: Tenant, app: FastAPI, client: httpx.AsyncClient, engine: AsyncEngine, worker: Worker
) -> None:
    await worker.finish(await worker.claim(await submit(client, model="tiny")), output_tokens=400, duration_ms=2095)
    await until(lambda: measured(client, "headrace_llm_tokens_per_second"))
    shared = Shared(settings.redis_url)
    breaker = SharedBreakers(shared, rules_of(app.state.services.catalog.breaker))
    vitals = app.state.services.vitals
    try:
        assert (await submit(client, model="large"))["routing"]["candidates"][0]["model"] == "alone"
        await breaker.record("alone", "", 20, 40)
        await vitals.look()
        job = await submit(client, model="large")
        parts = (await client.get("/health")).json()["parts"]
        shown = samples((await client.get("/metrics")).text)
    finally:
        with redis.Redis.from_url(settings.redis_url) as keys:
            keys.delete("headrace:breaker:alone")
        await shared.close()
        await vitals.look()
    routing = job["routing"]
    assert [candidate["model"] for candidate in routing["candidates"]] == ["wide", "alone"]
    assert routing["candidates"][1]["why"] == "circuit breaker open"
    assert parts["llm:alone"] == {"status": "down", "breaker": "open"}
    assert parts["llm:tiny"] == {"status": "ok", "breaker": "closed"}
    assert shown["headrace_llm_breaker", "alone/open"] == 1
    assert shown["headrace_llm_breaker", "tiny/closed"] == 1


async def measured(client: httpx.AsyncClient, metric: str) -> bool:
    """Whether a metric of the LLM `tiny` is shown."""
    return (metric, "tiny") in samples((await client.get("/metrics")).text)


async def test_an_llms_performance_is_that_of_its_latest_attempts(
    client: httpx.AsyncClient, engine: AsyncEngine, worker: Worker
) -> None:
    await fetch_all(engine, text("DELETE FROM attempts"))
    for duration_ms, output_tokens in ((1095, 100), (2095, 100), (3095, 400)):
        claimed = await worker.claim(await submit(client, model="tiny"))
        await worker.finish(claimed, duration_ms=duration_ms, output_tokens=output_tokens)
    for code in ("timeout", "provider_rejected"):
        claimed = await worker.claim(await submit(client, model="tiny"))
        await worker.finish(claimed, "failed", error={"code": code, "message": "", "retryable": False})
    (row,) = await fetch_all(engine, SELECT_PERFORMANCE, performance_params(datetime.now(UTC)))
    assert (row["llm"], to_vitals(row)) == (
        "tiny",
        Vitals(attempts=4, failures=1, latency_s=2.095, time_to_first_token_s=0.095, tokens_per_s=100.0),
    )
    later = performance_params(datetime.now(UTC) + timedelta(seconds=WINDOW_S + 60))
    assert await fetch_all(engine, SELECT_PERFORMANCE, later) == []
