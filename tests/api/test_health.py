"""Health endpoints and metrics: what they say of the parts that are there, and of those that are not."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import redis
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Executable, RowMapping, text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.app import create_app
from api.local.ports import choose_port
from api.settings import ApiSettings
from models.breakers import SharedBreakers, rules_of
from models.database import Params, fetch_all, newest_revision, older_revisions, read_all
from models.errors import FailureCode, JobFailure
from models.ids import new_id
from models.performance import SELECT_PERFORMANCE, WINDOW_S, performance_params, to_vitals
from models.process import DEREGISTER, REGISTER, SELECT_BACKLOG
from models.routing import Vitals
from models.shared import Shared
from tests.api.acting import Json, Tenant, Worker, code_of, serving, submit, until

Register = Callable[..., Awaitable[None]]

pytestmark = pytest.mark.anyio


@pytest.fixture
def anonymous(client: httpx.AsyncClient) -> httpx.AsyncClient:
    del client.headers["authorization"]
    return client


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.health.FRESH_S", 0)
    monkeypatch.setattr("api.vitals.PERFORMANCE_EVERY_S", 0)


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


@contextlib.asynccontextmanager
async def schema_of(engine: AsyncEngine, change: str, undo: str) -> AsyncIterator[None]:
    """Change what the schema says of itself for a while."""
    await fetch_all(engine, text(change))
    try:
        yield
    finally:
        await fetch_all(engine, text(undo), {"revision": newest_revision()} if ":revision" in undo else None)


_REVISION = "UPDATE alembic_version SET version_num = "


@pytest.mark.parametrize(
    ("change", "undo"),
    [
        (f"{_REVISION}'{min(older_revisions())}'", f"{_REVISION}:revision"),
        ("ALTER TABLE alembic_version RENAME TO gone", "ALTER TABLE gone RENAME TO alembic_version"),
        ("DELETE FROM alembic_version", "INSERT INTO alembic_version VALUES (:revision)"),
    ],
)
async def test_not_ready_on_an_older_schema_or_none(
    client: httpx.AsyncClient, engine: AsyncEngine, change: str, undo: str
) -> None:
    async with schema_of(engine, change, undo):
        response = await client.get("/readyz")
    report = response.json()
    assert (response.status_code, report["status"]) == (503, "down")
    assert report["parts"]["postgres"]["status"] == "ok"
    assert report["parts"]["migrations"]["status"] == "down"
    assert (await client.get("/readyz")).status_code == 200


async def test_ready_on_a_newer_schema_which_serves_this_version_too(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    async with schema_of(engine, f"{_REVISION}'20991231_later'", f"{_REVISION}:revision"):
        response = await client.get("/readyz")
        assert (await client.post("/v1/jobs", json={"prompt": "x"})).status_code == 202
    assert response.status_code == 200
    assert response.json()["parts"]["migrations"] == {
        "status": "ok",
        "found": "20991231_later",
        "expected": newest_revision(),
        "newer": True,
    }


def test_the_revisions_before_this_one_are_known() -> None:
    assert newest_revision() not in older_revisions()
    assert "20261121_0001" in older_revisions()


@contextlib.asynccontextmanager
async def from_address(
    app: FastAPI, host: str, headers: dict[str, str] | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key whose connection comes from an address."""
    transport = httpx.ASGITransport(app, client=(host, 5000))
    async with httpx.AsyncClient(transport=transport, base_url="http://headrace", headers=headers) as client:
        yield client


LOCAL = ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"]
REMOTE = ["10.0.0.9", "::2", "::ffff:10.0.0.9", "testclient"]


@pytest.mark.parametrize("host", LOCAL)
async def test_a_local_address_sees_metrics_and_parts(app: FastAPI, host: str) -> None:
    async with from_address(app, host) as client:
        assert (await client.get("/metrics")).status_code == 200
        assert "postgres" in (await client.get("/health")).json()["parts"]


@pytest.mark.parametrize("host", REMOTE)
async def test_any_other_address_needs_a_key(app: FastAPI, tenant: Tenant, host: str) -> None:
    async with from_address(app, host) as client:
        refused = await client.get("/metrics")
        assert (refused.status_code, code_of(refused)) == (401, "invalid_api_key")
        report = await client.get("/health")
        assert set(report.json()) == {"status"}
        assert (await client.get("/readyz")).status_code == 200
        wrong = {"authorization": "Bearer hr_wrong_key"}
        assert [(await client.get(path, headers=wrong)).status_code for path in ("/metrics", "/health")] == [401, 401]
        right = {"authorization": f"Bearer {tenant.key}"}
        assert (await client.get("/metrics", headers=right)).status_code == 200
        shown = await client.get("/health", headers=right)
        assert (shown.status_code, shown.json()["status"]) == (report.status_code, report.json()["status"])
        assert "postgres" in shown.json()["parts"]


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded", "x-real-ip"])
async def test_what_came_through_a_proxy_is_not_local_whatever_it_says(app: FastAPI, header: str) -> None:
    async with from_address(app, "127.0.0.1", {header: "127.0.0.1"}) as client:
        assert (await client.get("/metrics")).status_code == 401
        assert set((await client.get("/health")).json()) == {"status"}


async def test_a_setting_allows_other_networks(settings: ApiSettings) -> None:
    app = create_app(settings.model_copy(update={"metrics_allow": "10.0.0.0/8, fd00::/8"}))
    async with app.router.lifespan_context(app):
        for host, status in (("10.1.2.3", 200), ("fd00::7", 200), ("127.0.0.1", 401)):
            async with from_address(app, host) as client:
                assert (await client.get("/metrics")).status_code == status, host


def test_a_network_that_is_none_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="metrics_allow"):
        ApiSettings(database_url="postgresql+psycopg://", redis_url="redis://", metrics_allow="localhost")


@pytest.mark.parametrize("path", ["/metrics", "/health"])
async def test_those_who_ask_at_once_share_one_look(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Although nothing is remembered (FRESH_S is 0), Postgres is asked once."""
    looks = 0

    async def counted(given: AsyncEngine, statement: Executable, params: Params | None = None) -> Sequence[RowMapping]:
        nonlocal looks
        looks += statement is SELECT_BACKLOG
        await asyncio.sleep(0.2)
        return await read_all(given, statement, params)

    monkeypatch.setattr("api.health.read_all", counted)
    responses = await asyncio.gather(*(client.get(path) for _ in range(40)))
    assert {response.status_code for response in responses} <= {200, 503}
    assert looks == 1
    await client.get(path)
    assert looks == 2


async def test_a_server_that_takes_no_writes_is_said_to_be_one_and_the_process_stays_ready(
    settings: ApiSettings, tenant: Tenant
) -> None:
    app = create_app(settings)
    async with app.router.lifespan_context(app), serving(app, tenant) as client:
        await client.get("/readyz")
        async with app.state.services.pools.light.connect() as connection:
            name = (await connection.execute(text("SELECT current_database()"))).scalar_one()
            await connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
        try:
            await app.state.services.pools.renew()
            ready = await client.get("/readyz")
            refused = await client.post("/v1/jobs", json={"prompt": "x"})
            listed = await client.get("/v1/jobs")
        finally:
            async with app.state.services.pools.light.connect() as connection:
                await connection.execute(text("SET default_transaction_read_only = off"))
                await connection.execute(text(f"ALTER DATABASE {name} RESET default_transaction_read_only"))
        await app.state.services.pools.renew()
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        assert ready.json()["parts"]["postgres"] == {"status": "read_only"}
        assert (refused.status_code, code_of(refused)) == (503, "unavailable")
        assert "takes no writes" in refused.json()["detail"]
        assert "nothing was recorded" in refused.json()["detail"]
        assert int(refused.headers["retry-after"]) >= 1
        assert listed.status_code == 200
        assert (await client.post("/v1/jobs", json={"prompt": "x"})).status_code == 202
        assert (await client.get("/readyz")).json()["status"] == "ok"


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


async def test_health_says_of_an_llm_why_its_provider_refuses_this_platform(
    app: FastAPI, client: httpx.AsyncClient, worker: Worker
) -> None:
    """A model that was retired, an empty account: an operator sees it, until an attempt at the LLM succeeds again."""
    problem = "the provider does not have the model, or the address, of the catalogue (HTTP 404)"
    refusal = JobFailure(FailureCode.PROVIDER_AUTH, problem).as_wire()
    vitals = app.state.services.vitals

    async def part() -> Json:
        await vitals.look()
        shown: Json = (await client.get("/health")).json()["parts"]["llm:tiny"]
        return shown

    await worker.finish(await worker.claim(await submit(client, model="tiny")), "failed", error=refusal)
    assert await part() == {"status": "down", "breaker": "closed", "problem": problem}
    other = JobFailure(FailureCode.PROVIDER_REJECTED, "no").as_wire()
    await worker.finish(await worker.claim(await submit(client, model="tiny")), "failed", error=other)
    assert await part() == {"status": "ok", "breaker": "closed"}


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
