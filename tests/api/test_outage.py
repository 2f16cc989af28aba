"""Postgres away: 503 that says what is known, and recovery without a restart of the API."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Executable, RowMapping, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from api.local.postgres import EmbeddedPostgres
from api.settings import ApiSettings
from models.database import Params, create_engine, fetch_all, fetch_one, migrate
from tests.api.acting import Tenant, code_of, new_tenant, serving, submit, until

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A Postgres of this module's own, to be stopped and started again."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("fragile"), first_port=0)
    migrate(server.start())
    yield server
    server.stop()


@pytest.fixture
def settings(settings: ApiSettings, fragile: EmbeddedPostgres) -> ApiSettings:
    return settings.model_copy(update={"database_url": fragile.start(), "api_key_cache_s": 60.0})


@pytest.fixture
async def engine(fragile: EmbeddedPostgres) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(fragile.start(), name="tests", pool_size=2)
    yield engine
    await engine.dispose()


@pytest.fixture
async def tenant(engine: AsyncEngine) -> Tenant:
    """A tenant of the server that a test stops."""
    return await new_tenant(engine)


async def restart(server: EmbeddedPostgres) -> None:
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start)


async def test_nothing_is_accepted_while_postgres_is_away_and_all_works_after(
    client: httpx.AsyncClient, fragile: EmbeddedPostgres
) -> None:
    job = await submit(client)
    await asyncio.to_thread(fragile.stop)
    await client.post("/v1/jobs", json={"prompt": "finds the dead connections"})
    for method, path in [
        ("POST", "/v1/jobs"),
        ("GET", job["status_url"]),
        ("GET", "/v1/jobs"),
        ("POST", f"/v1/jobs/{job['id']}/cancel"),
    ]:
        response = await client.request(method, path, json={"prompt": "x"})
        assert (response.status_code, code_of(response)) == (503, "unavailable"), path
        assert int(response.headers["retry-after"]) >= 1
    assert "othing was recorded" in (await client.post("/v1/jobs", json={"prompt": "x"})).json()["detail"]
    assert (await client.get("/livez")).status_code == 200
    await asyncio.to_thread(fragile.start)
    await submit(client)
    assert (await client.get(job["status_url"])).json()["status"] == "queued"
    assert len((await client.get("/v1/jobs")).json()["data"]) == 2


async def test_a_key_that_is_not_remembered_is_unavailable_rather_than_wrong(
    app: FastAPI, engine: AsyncEngine, fragile: EmbeddedPostgres
) -> None:
    tenant = await new_tenant(engine)
    await asyncio.to_thread(fragile.stop)
    async with serving(app, tenant) as client:
        response = await client.get("/v1/jobs")
        assert (response.status_code, code_of(response)) == (503, "unavailable")
        await asyncio.to_thread(fragile.start)
        assert (await client.get("/v1/jobs")).status_code == 200


@pytest.mark.parametrize("request_line", ["GET /v1/jobs", "POST /v1/jobs", "GET status", "POST cancel"])
async def test_a_restart_between_two_requests_is_not_noticed(
    client: httpx.AsyncClient, fragile: EmbeddedPostgres, request_line: str
) -> None:
    job = await submit(client)
    await restart(fragile)
    method, path = request_line.split()
    path = {"status": job["status_url"], "cancel": f"/v1/jobs/{job['id']}/cancel"}.get(path, path)
    response = await client.request(method, path, json={"prompt": "x"})
    assert response.status_code in {200, 202}, response.text


async def test_a_submission_whose_connection_breaks_in_mid_statement_is_recorded_once(
    client: httpx.AsyncClient, engine: AsyncEngine, tenant: Tenant
) -> None:
    """The statement waits behind a lock when its backend is killed; what was sent is sent again."""
    await submit(client)
    async with engine.connect() as blocker:
        await blocker.execution_options(isolation_level="READ COMMITTED")
        await blocker.begin()
        await blocker.execute(text("LOCK TABLE jobs"))
        request = asyncio.create_task(client.post("/v1/jobs", json={"prompt": "x"}))
        await terminate_waiting_insert(engine)
        await blocker.rollback()
    assert (await request).status_code == 202
    assert await count_jobs(engine, tenant) == 2


async def test_a_statement_that_was_applied_before_its_connection_broke_is_found_again(
    app: FastAPI,
    client: httpx.AsyncClient,
    engine: AsyncEngine,
    tenant: Tenant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The insert is made, its answer is lost: the second insert meets the job's own id."""
    monkeypatch.setattr("api.reserving.fetch_all", lose_first_answer())
    keyed = await client.post("/v1/jobs", json={"prompt": "x"}, headers={"idempotency-key": "k"})
    assert (keyed.status_code, "idempotent-replayed" in keyed.headers) == (202, False)
    monkeypatch.setattr("api.reserving.fetch_all", lose_first_answer())
    plain = await client.post("/v1/jobs", json={"prompt": "x"})
    assert plain.status_code == 202
    assert await count_jobs(engine, tenant) == 2


async def test_an_unknown_outcome_is_said_to_be_unknown(
    client: httpx.AsyncClient, engine: AsyncEngine, fragile: EmbeddedPostgres
) -> None:
    await submit(client)
    with contextlib.suppress(DBAPIError):  # the blocker's connection ends with the server
        async with engine.connect() as blocker:
            await blocker.execution_options(isolation_level="READ COMMITTED")
            await blocker.begin()
            await blocker.execute(text("LOCK TABLE jobs"))
            request = asyncio.create_task(client.post("/v1/jobs", json={"prompt": "x"}))
            await waiting_insert(engine)
            await asyncio.to_thread(fragile.stop)
    response = await request
    assert (response.status_code, code_of(response)) == (503, "unavailable")
    assert "Idempotency-Key" in response.json()["detail"]


async def test_one_row_that_postgres_refuses_does_not_fail_its_group(
    client: httpx.AsyncClient, engine: AsyncEngine, app: FastAPI, tenant: Tenant
) -> None:
    doomed = await new_tenant(engine)
    async with serving(app, doomed) as other:
        await submit(other)
        for table in ("jobs", "tenants"):
            column = "tenant_id" if table == "jobs" else "id"
            await fetch_one(engine, text(f"DELETE FROM {table} WHERE {column} = :id"), {"id": doomed.id})
        responses = await asyncio.gather(
            *(client.post("/v1/jobs", json={"prompt": "x"}) for _ in range(10)),
            other.post("/v1/jobs", json={"prompt": "x"}),
        )
    assert [response.status_code for response in responses] == [202] * 10 + [500]
    assert await count_jobs(engine, tenant) == 10


def lose_first_answer() -> Callable[..., Awaitable[Sequence[RowMapping]]]:
    """A ``fetch_all`` that runs its statement and then fails once, as when the connection breaks."""
    lost = False

    async def fetch(given: AsyncEngine, statement: Executable, params: Params | None = None) -> Sequence[RowMapping]:
        nonlocal lost
        rows = await fetch_all(given, statement, params)
        if not lost:
            lost = True
            async with given.connect() as connection:
                await connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return rows

    return fetch


async def waiting_insert(engine: AsyncEngine) -> int:
    """The backend whose INSERT waits for a lock."""
    query = text(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'headrace-api' AND wait_event_type = 'Lock'"
    )
    await until(lambda: fetch_one(engine, query))
    row = await fetch_one(engine, query)
    assert row is not None
    return int(row["pid"])


async def terminate_waiting_insert(engine: AsyncEngine) -> None:
    pid = await waiting_insert(engine)
    await fetch_one(engine, text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})


async def count_jobs(engine: AsyncEngine, tenant: Tenant) -> int:
    row = await fetch_one(engine, text("SELECT count(*) FROM jobs WHERE tenant_id = :id"), {"id": tenant.id})
    assert row is not None
    return int(row["count"])
