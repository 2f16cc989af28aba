"""One tenant's reads and changes take nothing from others: not a submission, not a state, not a cancellation."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.app import create_app
from api.pools import FEWEST, split
from api.settings import ApiSettings
from api.shares import Shares
from models.database import fetch_all
from models.errors import RateLimited
from models.ids import new_id
from tests.api.acting import Tenant, code_of, serving, submit, until

pytestmark = pytest.mark.anyio

ONE, OTHER = UUID(int=1), UUID(int=2)


@contextlib.asynccontextmanager
async def locked(engine: AsyncEngine, table: str) -> AsyncIterator[None]:
    """Every statement on a table waits meanwhile, as one that reads very much would run."""
    async with engine.connect() as blocker:
        await blocker.execution_options(isolation_level="READ COMMITTED")
        async with blocker.begin():
            await blocker.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
            yield


async def test_endless_reads_of_one_tenant_leave_others_everything(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    async with locked(engine, "ledger_entries"):
        reads = [asyncio.create_task(client.get("/v1/usage")) for _ in range(40)]
        await until(lambda: _waits(engine, "headrace-api-reads"))
        jobs = [await submit(stranger) for _ in range(20)]
        for job in jobs:
            assert (await stranger.get(job["status_url"])).status_code == 200
        assert (await stranger.get("/v1/jobs")).status_code == 200
        assert (await stranger.post(f"/v1/jobs/{jobs[0]['id']}/cancel")).status_code == 200
        own = await submit(client)
        assert (await client.get(own["status_url"])).status_code == 200
        done, _ = await asyncio.wait(reads, timeout=5)
        refused = [task.result() for task in done]
        assert len(refused) >= 38
        assert {(response.status_code, code_of(response)) for response in refused} == {(429, "rate_limited")}
        assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
    assert {response.status_code for response in await asyncio.gather(*reads)} == {200, 429}
    assert (await client.get("/v1/usage")).status_code == 200


async def _waits(engine: AsyncEngine, name: str) -> object:
    query = text("SELECT FROM pg_stat_activity WHERE application_name = :name AND wait_event_type = 'Lock'")
    return await fetch_all(engine, query, {"name": name})


async def test_a_read_that_takes_too_long_says_so(settings: ApiSettings, tenant: Tenant, engine: AsyncEngine) -> None:
    app = create_app(settings.model_copy(update={"api_read_timeout_s": 0.2}))
    async with app.router.lifespan_context(app), serving(app, tenant) as client:
        await client.get("/v1/usage")
        async with locked(engine, "ledger_entries"):
            response = await client.get("/v1/usage", params={"from": "2000-01-01"})
        assert (response.status_code, code_of(response)) == (503, "unavailable")
        assert "took too long" in response.json()["detail"]
        assert response.headers["x-should-retry"] == "false"
        assert int(response.headers["retry-after"]) >= 1
        assert (await client.get("/v1/usage")).status_code == 200


async def test_a_tenants_changes_wait_for_each_other_and_not_others_for_them(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient, engine: AsyncEngine, tenant: Tenant
) -> None:
    budget = {"scope": "tenant", "window": "total", "limit_usd": "1.00"}
    put = (await client.put("/v1/budgets", json=budget)).json()
    held = text("SELECT FROM budgets WHERE tenant_id = :id FOR UPDATE")
    async with engine.connect() as blocker:
        await blocker.execution_options(isolation_level="READ COMMITTED")
        async with blocker.begin():
            await blocker.execute(held, {"id": tenant.id})
            changes = [asyncio.create_task(client.put("/v1/budgets", json=budget)) for _ in range(30)]
            await until(lambda: _waits(engine, "headrace-api-control"))
            assert (await stranger.put("/v1/budgets", json=budget)).status_code == 200
            refused, waiting = await asyncio.wait(changes, timeout=2)
            assert {task.result().status_code for task in refused} == {429}
            assert waiting
    assert {response.status_code for response in await asyncio.gather(*waiting)} == {200}
    assert (await client.delete(f"/v1/budgets/{put['id']}")).status_code == 204


async def test_a_stream_of_results_waits_for_its_turn_and_is_not_refused(app: FastAPI, engine: AsyncEngine) -> None:
    read = app.state.services.reads.of(new_id())
    rows = await asyncio.gather(*(read(text("SELECT pg_sleep(0.02), :n AS n"), {"n": n}) for n in range(50)))
    assert [row[0]["n"] for row in rows] == list(range(50))


async def test_a_share_is_a_tenants_own() -> None:
    shares = Shares("too many", at_once=1, waiting=1, wait_s=0.05)
    async with shares.one_of(ONE):
        async with shares.one_of(OTHER):
            pass
        waiting = asyncio.create_task(_enter(shares, ONE))
        await asyncio.sleep(0)
        with pytest.raises(RateLimited, match="too many"):  # one waits already
            await _enter(shares, ONE)
        with pytest.raises(RateLimited):  # and has waited for long enough
            await waiting
        patient = asyncio.create_task(_enter_in_turn(shares, ONE))
        await asyncio.sleep(0.1)
        assert not patient.done()
    await patient
    await _enter(shares, ONE)
    assert shares._shares == {}


async def _enter(shares: Shares, tenant_id: UUID) -> None:
    async with shares.one_of(tenant_id):
        pass


async def _enter_in_turn(shares: Shares, tenant_id: UUID) -> None:
    async with shares.next_of(tenant_id):
        pass


@pytest.mark.parametrize("connections", [FEWEST, 12, 13, 14, 15, 37, 200])
def test_the_pools_have_together_what_the_setting_says(connections: int) -> None:
    sizes = split(connections)
    assert sum(sizes.values()) == connections
    assert min(sizes.values()) >= 2
    assert sizes["files"] >= 3
