"""Budgets over HTTP: what they are, what they refuse, and what becomes of reservations."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.app import create_app
from api.settings import ApiSettings
from models.attempt import RELEASE, RESCUE
from models.budget import FOLD
from models.database import fetch_all, fetch_one, transaction
from models.event import RAISE_ANOMALIES
from models.ids import new_id
from models.job import EXPIRE_JOBS
from tests.api.acting import Json, Tenant, Worker, code_of, new_tenant, serving, submit, uuid_of
from tests.api.test_outage import lose_first_answer

pytestmark = pytest.mark.anyio

Usd = Decimal | int

ASK = {"prompt": "Say hello.", "model": "alone", "fallbacks": [], "max_tokens": 10}
WORST = Decimal("0.000348")  # 10 bytes and 144 of overhead at 2, 10 tokens at 4 USD per million
COST = Decimal("0.000092")  # what Worker.finish books


async def put(client: httpx.AsyncClient, limit_usd: object, **fields: object) -> Json:
    body = {"scope": "tenant", "window": "total", "limit_usd": str(limit_usd)} | fields
    response = await client.put("/v1/budgets", json=body)
    assert response.status_code == 200, response.text
    budget: Json = response.json()
    return budget


async def read(client: httpx.AsyncClient, budget: Json) -> tuple[Usd, Usd, Usd]:
    """What is spent, reserved and left."""
    found = (await client.get(f"/v1/budgets/{budget['id']}")).json()
    return Decimal(found["spent_usd"]), Decimal(found["reserved_usd"]), Decimal(found["remaining_usd"])


async def ask(client: httpx.AsyncClient, headers: dict[str, str] | None = None, **fields: object) -> httpx.Response:
    return await client.post("/v1/jobs", json=ASK | fields, headers=headers)


async def events(engine: AsyncEngine, tenant: Tenant) -> list[dict[str, Any]]:  # Any: columns of several types
    await fetch_all(engine, FOLD)
    rows = await fetch_all(
        engine,
        text("SELECT type, payload FROM events WHERE tenant_id = :id ORDER BY created_at, type"),
        {"id": tenant.id},
    )
    return [dict(row) for row in rows]


async def test_a_budget_is_created_read_changed_listed_and_deleted(client: httpx.AsyncClient) -> None:
    created = await put(client, "1.5", scope="team", subject="search", window="day", alert_at=0.5)
    assert created | {"id": None, "resets_at": None} == {
        "id": None,
        "object": "budget",
        "scope": "team",
        "subject": "search",
        "window": "day",
        "limit_usd": "1.500000",
        "spent_usd": "0.000000",
        "reserved_usd": "0.000000",
        "remaining_usd": "1.500000",
        "alert_at": 0.5,
        "resets_at": None,
    }
    assert created["id"].startswith("budget_")
    assert created["resets_at"].endswith("T00:00:00.000Z")
    changed = await put(client, 2, scope="team", subject="search", window="day")
    assert (changed["id"], changed["limit_usd"], changed["alert_at"]) == (created["id"], "2.000000", 0.8)
    total = await put(client, 5)
    assert total["resets_at"] is None
    assert (await put(client, 6))["id"] == total["id"]  # NULL subjects are one subject
    month = await put(client, 5, window="month")
    assert month["resets_at"].endswith("-01T00:00:00.000Z")
    first = (await client.get("/v1/budgets", params={"limit": 2})).json()
    rest = (await client.get("/v1/budgets", params={"after": first["last_id"]})).json()
    assert [b["id"] for b in first["data"] + rest["data"]] == [created["id"], total["id"], month["id"]]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert (await client.delete(f"/v1/budgets/{total['id']}")).status_code == 204
    assert code_of(await client.get(f"/v1/budgets/{total['id']}")) == "not_found"
    assert code_of(await client.delete(f"/v1/budgets/{total['id']}")) == "not_found"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"scope": "tenant", "subject": "x"}, "body"),
        ({"scope": "team"}, "body"),
        ({"scope": "planet"}, "scope"),
        ({"window": "week"}, "window"),
        ({"limit_usd": "-1"}, "limit_usd"),
        ({"limit_usd": "0.0000001"}, "limit_usd"),
        ({"limit_usd": "much"}, "limit_usd"),
        ({"limit_usd": "NaN"}, "limit_usd"),
        ({"limit_usd": None}, "limit_usd"),
        ({"alert_at": 0}, "alert_at"),
        ({"alert_at": 1.1}, "alert_at"),
        ({"scope": "key", "subject": "nobody"}, "subject"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_a_wrong_budget_is_refused(client: httpx.AsyncClient, wrong: dict[str, Any], field: str) -> None:
    body = {"scope": "tenant", "window": "total", "limit_usd": "1"} | wrong
    response = await client.put("/v1/budgets", json=body)
    assert code_of(response) == "validation_failed"
    assert [problem["field"] for problem in response.json()["errors"]] == [field]


async def test_a_budget_of_another_tenant_does_not_exist(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient, tenant: Tenant
) -> None:
    budget = await put(client, 1)
    assert code_of(await stranger.get(f"/v1/budgets/{budget['id']}")) == "not_found"
    assert code_of(await stranger.delete(f"/v1/budgets/{budget['id']}")) == "not_found"
    assert (await stranger.get("/v1/budgets")).json()["data"] == []
    response = await stranger.put(
        "/v1/budgets",
        json={"scope": "key", "subject": tenant.key.split("_")[1], "window": "total", "limit_usd": "1"},
    )
    assert code_of(response) == "validation_failed"
    await put(client, 0)
    await submit(stranger, **ASK)


async def test_a_job_that_does_not_fit_is_refused_by_the_budgets_name_and_not_recorded(
    client: httpx.AsyncClient,
) -> None:
    budget = await put(client, WORST + WORST / 2)
    await submit(client, **ASK)
    response = await ask(client)
    assert (response.status_code, code_of(response)) == (402, "budget_exceeded")
    problem = response.json()
    assert problem["error"]["type"] == "insufficient_quota"
    assert (problem["budget"]["id"], problem["budget"]["scope"]) == (budget["id"], "tenant")
    assert (problem["budget"]["remaining_usd"], problem["asked_usd"]) == ("0.000174", "0.000348")
    assert "0.000174" in problem["detail"]
    assert len((await client.get("/v1/jobs")).json()["data"]) == 1
    assert await read(client, budget) == (0, WORST, WORST / 2)


async def test_a_job_must_fit_in_every_budget_that_covers_it_and_only_in_these(
    client: httpx.AsyncClient, tenant: Tenant
) -> None:
    lookup = tenant.key.split("_")[1]
    wide = await put(client, 10 * WORST)
    key = await put(client, 10 * WORST, scope="key", subject=lookup, window="month")
    team = await put(client, 2 * WORST, scope="team", subject="search", window="day")
    user = await put(client, WORST, scope="user", subject="ada")
    await submit(client, **ASK, team="search", user="ada")
    refused = await ask(client, team="search", user="ada")
    assert refused.json()["budget"]["id"] == user["id"]
    await submit(client, **ASK, team="search", user="bob")
    refused = await ask(client, team="search", user="bob")
    assert refused.json()["budget"]["id"] == team["id"]
    await submit(client, **ASK)
    reserved = [(await read(client, budget))[1] for budget in (wide, key, team, user)]
    assert reserved == [3 * WORST, 3 * WORST, 2 * WORST, WORST]


async def test_of_jobs_that_arrive_together_those_that_fit_are_recorded(client: httpx.AsyncClient) -> None:
    budget = await put(client, 5 * WORST)
    small = WORST - Decimal("0.00002")  # five tokens less
    answers = await asyncio.gather(*(ask(client, max_tokens=10 if n % 2 else 5) for n in range(20)))
    accepted = [n for n, response in enumerate(answers) if response.status_code == 202]
    assert {response.status_code for response in answers} == {202, 402}
    asked = sum(WORST if n % 2 else small for n in accepted)
    assert await read(client, budget) == (0, asked, 5 * WORST - asked)
    assert 5 * WORST - asked < small


async def test_an_idempotent_replay_reserves_nothing_and_is_answered_when_the_budget_is_used_up(
    client: httpx.AsyncClient,
) -> None:
    budget = await put(client, WORST)
    key = {"idempotency-key": "once"}
    first, *replays = await asyncio.gather(*(ask(client, key) for _ in range(5)))
    assert first.status_code == 202
    assert {response.status_code for response in replays} <= {200, 202}
    assert {response.json()["id"] for response in replays} == {first.json()["id"]}
    again = await ask(client, key)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert code_of(await ask(client, key, max_tokens=11)) == "idempotency_mismatch"
    assert await read(client, budget) == (0, WORST, 0)


async def test_a_process_notices_the_budget_that_another_has_just_made(
    client: httpx.AsyncClient, settings: ApiSettings, tenant: Tenant
) -> None:
    await submit(client, **ASK)
    other = create_app(settings)
    async with other.router.lifespan_context(other), serving(other, tenant) as elsewhere:
        await put(elsewhere, 0)
    assert (await ask(client)).status_code == 402


async def test_a_finished_job_books_its_cost_and_releases_the_rest(client: httpx.AsyncClient, worker: Worker) -> None:
    budget = await put(client, 1)
    job = await submit(client, **ASK)
    claimed = await worker.claim(job)
    assert claimed["budgeted"]
    assert await read(client, budget) == (0, WORST, 1 - WORST)
    await worker.finish(claimed)
    assert await read(client, budget) == (COST, 0, 1 - COST)
    await worker.finish(claimed)  # a report that comes twice
    assert await read(client, budget) == (COST, 0, 1 - COST)
    await submit(client, **ASK)  # folds what was settled
    assert await read(client, budget) == (COST, WORST, 1 - COST - WORST)


async def test_a_cancelled_job_releases_its_reservation_once(client: httpx.AsyncClient, worker: Worker) -> None:
    budget = await put(client, 1)
    waiting, running = await submit(client, **ASK), await submit(client, **ASK)
    claimed = await worker.claim(running)
    cancelled, again, _ = await asyncio.gather(
        client.post(f"/v1/jobs/{waiting['id']}/cancel"),
        client.post(f"/v1/jobs/{waiting['id']}/cancel"),
        client.post(f"/v1/jobs/{running['id']}/cancel"),
    )
    assert sorted([cancelled.status_code, again.status_code]) == [200, 409]
    assert await read(client, budget) == (0, WORST, 1 - WORST)
    await worker.finish(claimed, "cancelled")
    assert await read(client, budget) == (COST, 0, 1 - COST)


async def test_jobs_that_are_ended_by_others_release_their_reservations_and_late_costs_are_booked(
    client: httpx.AsyncClient, worker: Worker, engine: AsyncEngine
) -> None:
    budget = await put(client, 1)
    expiring, lost, given_back = [await submit(client, **ASK) for _ in range(3)]
    claims = [await worker.claim(job) for job in (lost, given_back)]
    for column, job in (("expires_at = now()", expiring), ("cancel_requested_at = now()", given_back)):
        await fetch_all(engine, text(f"UPDATE jobs SET {column} WHERE id = :id"), {"id": uuid_of(job)})
    await fetch_all(engine, EXPIRE_JOBS, {"limit": 100, "grace_s": 60, "error": "{}", "writer": new_id()})
    assert (await read(client, budget))[1] == 2 * WORST
    await fetch_all(engine, RELEASE, {"attempt_ids": [claims[1]["attempt_id"]], "writer": new_id()})
    assert (await read(client, budget))[1] == WORST
    await worker.deregister()
    params = {
        "limit": 100,
        "max_deliveries": 1,
        "max_deliveries_error": "{}",
        "expired_error": "{}",
        "writer": new_id(),
    }
    await fetch_all(engine, RESCUE, params)
    assert await read(client, budget) == (0, 0, 1)
    await worker.finish(claims[0])
    assert await read(client, budget) == (COST, 0, 1 - COST)
    statuses = [(await client.get(job["status_url"])).json()["status"] for job in (expiring, lost, given_back)]
    assert statuses == ["expired", "failed", "cancelled"]


async def test_what_was_reserved_stays_reserved_when_a_budget_is_lowered(
    client: httpx.AsyncClient, worker: Worker
) -> None:
    budget = await put(client, 1)
    job = await submit(client, **ASK)
    lowered = await put(client, "0.0001")
    assert (lowered["reserved_usd"], lowered["remaining_usd"]) == (str(WORST), "0.000000")
    refused = await ask(client)
    assert (refused.status_code, refused.json()["budget"]["remaining_usd"]) == (402, "0.000000")
    await worker.complete(job)
    assert await read(client, budget) == (COST, 0, Decimal("0.000008"))


async def test_a_new_budget_starts_with_what_its_period_has_spent(client: httpx.AsyncClient, worker: Worker) -> None:
    await worker.complete(await submit(client, **ASK, team="search"))
    await worker.complete(await submit(client, **ASK, user="ada"))
    running = await worker.claim(await submit(client, **ASK, team="search"))
    spent = {
        (scope, window): (await put(client, 1, scope=scope, subject=subject, window=window))["spent_usd"]
        for scope, subject in (("tenant", None), ("team", "search"), ("user", "ada"), ("user", "bob"))
        for window in ("day", "total")
        if subject != "bob"
    }
    assert spent == {(scope, window): str(COST * (2 if scope == "tenant" else 1)) for scope, window in spent}
    await worker.finish(running)
    again = await put(client, 1)
    assert again["spent_usd"] == str(2 * COST)  # what ran when the budget was made is not counted


async def test_a_job_settles_in_the_period_that_it_reserved_in(
    client: httpx.AsyncClient, worker: Worker, engine: AsyncEngine, tenant: Tenant
) -> None:
    budget = await put(client, WORST, window="day")
    yesterdays = await submit(client, **ASK)
    move = text(
        "UPDATE budget_periods p SET period_start = period_start - interval '1 day' FROM budgets b"
        " WHERE b.id = p.budget_id AND b.tenant_id = :id"
    )
    await fetch_all(engine, move, {"id": tenant.id})
    assert await read(client, budget) == (0, 0, WORST)
    await submit(client, **ASK)
    await worker.complete(yesterdays)
    assert await read(client, budget) == (0, WORST, 0)
    await fetch_all(engine, FOLD)
    old = text(
        "SELECT spent_usd, reserved_usd FROM budget_periods p JOIN budgets b ON b.id = p.budget_id"
        " WHERE b.tenant_id = :id ORDER BY period_start LIMIT 1"
    )
    row = await fetch_one(engine, old, {"id": tenant.id})
    assert row is not None
    assert (row["spent_usd"], row["reserved_usd"]) == (COST, 0)


async def test_jobs_go_on_when_their_budget_is_deleted(client: httpx.AsyncClient, worker: Worker) -> None:
    budget = await put(client, 1)
    job = await submit(client, **ASK)
    await client.delete(f"/v1/budgets/{budget['id']}")
    await worker.complete(job)
    assert (await client.get(job["status_url"])).json()["status"] == "completed"
    await submit(client, **ASK)


async def test_reaching_80_and_100_percent_raises_one_event_each(
    client: httpx.AsyncClient, worker: Worker, engine: AsyncEngine, tenant: Tenant
) -> None:
    budget = await put(client, "0.0046")  # 50 times COST
    for cost, expected in (("0.003", []), ("0.0007", ["budget.alert"]), ("0.00035", ["budget.alert"])):
        await worker.finish(await worker.claim(await submit(client, **ASK)), cost_usd=cost)
        assert [event["type"] for event in await events(engine, tenant)] == expected
    await submit(client, **ASK)
    assert (await ask(client)).status_code == 402
    assert (await ask(client)).status_code == 402
    raised = await events(engine, tenant)
    assert [event["type"] for event in raised] == ["budget.alert", "budget.exhausted"]
    assert raised[0]["payload"]["budget_id"] == budget["id"]
    assert raised[0]["payload"]["limit_usd"] == "0.004600"


async def test_a_day_above_twice_the_average_of_the_week_before_raises_one_event(
    engine: AsyncEngine, tenant: Tenant
) -> None:
    young = await new_tenant(engine)
    book = text(
        "INSERT INTO ledger_entries (attempt_id, job_id, tenant_id, llm, input_tokens, output_tokens, input_price,"
        " output_price, cost_usd, created_at) SELECT gen_random_uuid(), gen_random_uuid(), :tenant_id, 'tiny', 1, 1,"
        " 1, 1, :cost, now() - make_interval(days => day) FROM generate_series(CAST(:first AS int), :last) AS day"
    )
    await fetch_all(engine, book, {"tenant_id": tenant.id, "cost": 1, "first": 1, "last": 8})
    await fetch_all(engine, book, {"tenant_id": young.id, "cost": 1, "first": 1, "last": 2})
    for cost, expected in (("2.0", []), ("0.01", ["spend.anomaly"]), ("5", ["spend.anomaly"])):
        for payer in (tenant, young):
            await fetch_all(engine, book, {"tenant_id": payer.id, "cost": cost, "first": 0, "last": 0})
        await fetch_all(engine, RAISE_ANOMALIES)
        raised = await events(engine, tenant)
        assert [event["type"] for event in raised] == expected
    assert raised[0]["payload"]["daily_average_usd"] == "1.000000"
    assert raised[0]["payload"]["spent_usd"] == "2.010000"
    assert await events(engine, young) == []


async def test_an_answer_in_a_form_reserves_the_call_that_corrects_it(client: httpx.AsyncClient, app: FastAPI) -> None:
    budget = await put(client, 1)
    await submit(client, **ASK | {"max_tokens": 100}, response_format={"type": "json_object"})
    reserved = (await read(client, budget))[1]
    assert reserved > 2 * (WORST + Decimal("0.00036"))


async def test_unknown_ids_are_not_found(client: httpx.AsyncClient) -> None:
    for budget_id in ("nonsense", f"job_{new_id().hex}", f"budget_{new_id().hex}"):
        assert code_of(await client.get(f"/v1/budgets/{budget_id}")) == "not_found"
    assert code_of(await client.get("/v1/budgets", params={"after": "nonsense"})) == "validation_failed"


async def test_a_reservation_whose_answer_is_lost_is_made_once(
    app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement, and then the commit of the transaction that decides job by job, is applied and run again."""
    budget = await put(client, 2 * WORST)
    monkeypatch.setattr("api.reserving.fetch_all", lose_first_answer())
    assert (await ask(client)).status_code == 202
    assert await read(client, budget) == (0, WORST, WORST)
    lost: list[object] = []

    @contextlib.asynccontextmanager
    async def lose_first_commit(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        async with transaction(engine) as connection:
            yield connection
        if not lost:
            lost.append(True)
            async with engine.connect() as connection:
                await connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    monkeypatch.setattr("api.reserving.transaction", lose_first_commit)
    first, second = await asyncio.gather(ask(client), ask(client))
    assert (first.status_code, second.status_code, lost) == (202, 402, [True])
    assert await read(client, budget) == (0, 2 * WORST, 0)
