"""Batches of uploaded files begin with all their rows, or fail with all their problems and cost nothing."""

import asyncio
import json
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.batches.validation import validate
from api.counters import Counters
from api.ratelimits import RateLimiter
from models.catalog import load_catalog
from models.database import create_engine, fetch_all, fetch_one
from models.ids import BATCH, from_wire
from models.routing import Router
from models.validation import RECORD_BATCH, SELECT_UNREAD
from models.wakeups import Wakeups
from tests.api.acting import Json, Tenant, code_of, until
from tests.api.conftest import CATALOG

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"


def line(custom_id: str, **body: object) -> Json:
    content = {"model": "wide", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10} | body
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": content}


async def upload(client: httpx.AsyncClient, lines: list[Json]) -> str:
    content = "\n".join(map(json.dumps, lines)).encode()
    form = {"purpose": "batch"}
    response = await client.post("/v1/files", files={"file": ("rows.jsonl", content)}, data=form)
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


async def create(client: httpx.AsyncClient, file_id: str, **fields: object) -> httpx.Response:
    wanted = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"} | fields
    return await client.post("/v1/batches", json=wanted)


async def results(client: httpx.AsyncClient, batch: Json) -> list[Json]:
    """What is known of a batch's rows that have an end."""
    response = await client.get(batch["results_url"], params={"format": "jsonl"})
    return [json.loads(found) for found in response.text.splitlines()]


async def budget(client: httpx.AsyncClient, limit_usd: str) -> None:
    wanted = {"scope": "tenant", "window": "total", "limit_usd": limit_usd}
    assert (await client.put("/v1/budgets", json=wanted)).is_success


async def reserved(client: httpx.AsyncClient) -> str:
    (found,) = (await client.get("/v1/budgets")).json()["data"]
    return str(found["reserved_usd"])


async def test_a_small_file_is_read_at_once_and_its_rows_are_reserved_for(client: httpx.AsyncClient) -> None:
    await budget(client, "1.00")
    file_id = await upload(client, [line("a"), line("b", temperature=0)])
    response = await create(client, file_id, metadata={"k": "v"}, completion_window="90m", name="night", priority="low")
    batch = response.json()
    assert response.status_code == 200
    assert (batch["status"], batch["model"], batch["metadata"]) == ("in_progress", "wide", {"k": "v"})
    assert (batch["input_file_id"], batch["name"], batch["priority"]) == (file_id, "night", "low")
    assert batch["request_counts"] == {"total": 2, "completed": 0, "failed": 0}
    assert batch["expires_at"] - batch["created_at"] == 90 * 60
    assert batch["errors"] is None
    # Each: 2 bytes, 16 for a message and 128 for a request at 1 USD, and 10 tokens of answer at 10 USD per million.
    assert await reserved(client) == "0.000492"


async def test_a_batch_sent_again_with_its_key_is_the_same_batch(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient
) -> None:
    file_id = await upload(client, [line("a")])

    async def keyed(**fields: object) -> httpx.Response:
        wanted = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"} | fields
        return await client.post("/v1/batches", json=wanted, headers={"idempotency-key": "k"})

    answers = await asyncio.gather(*(keyed() for _ in range(4)))
    (batch_id,) = {answer.json()["id"] for answer in answers}
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 3
    assert code_of(await keyed(name="other")) == "idempotency_mismatch"
    assert [batch["id"] for batch in (await client.get("/v1/batches")).json()["data"]] == [batch_id]
    theirs = await upload(stranger, [line("a")])
    wanted = {"input_file_id": theirs, "endpoint": CHAT, "completion_window": "24h"}
    answer = await stranger.post("/v1/batches", json=wanted, headers={"idempotency-key": "k"})
    assert answer.json()["id"] != batch_id
    assert "idempotent-replayed" not in answer.headers


async def test_a_file_with_problems_makes_a_failed_batch_that_costs_nothing(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await budget(client, "1.00")
    file_id = await upload(client, [line("a"), line("a"), line("b", tools=[{}]), line("c", model="none")])
    batch = (await create(client, file_id)).json()
    assert (batch["status"], batch["failed_at"] is not None) == ("failed", True)
    told = [(error["line"], error["param"], error["code"]) for error in batch["errors"]["data"]]
    assert told == [
        (2, "custom_id", "duplicate_custom_id"),
        (3, "tools", "validation_failed"),
        (4, "model", "model_not_found"),
    ]
    assert await reserved(client) == "0.000000"
    rows = "SELECT FROM batch_rows WHERE batch_id = :id"
    assert not await fetch_all(engine, text(rows), {"id": from_wire(BATCH, batch["id"])})


async def test_a_batch_that_does_not_fit_its_budget_fails(client: httpx.AsyncClient) -> None:
    await budget(client, "0.000300")
    batch = (await create(client, await upload(client, [line("a"), line("b")]))).json()
    (error,) = batch["errors"]["data"]
    assert (batch["status"], error["code"], error["line"]) == ("failed", "budget_exceeded", None)
    assert await reserved(client) == "0.000000"


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"input_file_id": "file-01a1fcbec45f76958cf469824f9538bf"}, 404, "input_file_id"),
        ({"input_file_id": "nonsense"}, 404, "input_file_id"),
        ({"endpoint": "/v1/completions"}, 422, "endpoint"),
        ({"completion_window": "31d"}, 422, "completion_window"),
        ({"completion_window": "1w"}, 422, "completion_window"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, 422, "output_expires_after.seconds"),
        ({"metadata": {"k": 1}}, 422, "metadata.k"),
        ({"color": "red"}, 422, "color"),
    ],
)
async def test_what_is_wrong_with_a_batch_itself_is_refused(
    client: httpx.AsyncClient, fields: Json, status: int, param: str
) -> None:
    response = await create(client, await upload(client, [line("a")]), **fields)
    code_of(response)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)
    assert (await client.get("/v1/batches")).json()["data"] == []


async def test_another_tenants_file_cannot_be_used(client: httpx.AsyncClient, stranger: httpx.AsyncClient) -> None:
    file_id = await upload(client, [line("a")])
    assert code_of(await create(stranger, file_id)) == "not_found"


async def test_a_large_file_is_read_by_a_process_of_its_own(client: httpx.AsyncClient) -> None:
    lines = [line(f"r{number}", user=None) for number in range(3000)]
    batch = (await create(client, await upload(client, lines), dedupe=True)).json()
    assert (batch["status"], batch["request_counts"]["total"]) == ("validating", 0)

    async def has_begun() -> bool:
        batch.update((await client.get(f"/v1/batches/{batch['id']}")).json())
        return bool(batch["status"] != "validating")

    await until(has_begun, 30)
    assert (batch["status"], batch["request_counts"]["total"]) == ("in_progress", 3000)


async def record(engine: AsyncEngine, client: httpx.AsyncClient, tenant: Tenant, file_id: str) -> UUID:
    """A batch that some API process recorded, and died before it read the file."""
    columns: dict[str, Any] = dict.fromkeys(("name", "max_parallel", "end_user", "team", "output_expires_s"))
    columns |= dict.fromkeys(("idempotency_key", "request_hash"))
    row = await fetch_one(engine, text("SELECT gen_random_uuid() AS id"))
    assert row is not None
    columns |= {"id": row["id"], "tenant_id": tenant.id, "api_key_id": None, "endpoint": CHAT, "dedupe": False}
    columns |= {"priority": 1, "completion_window": "24h", "labels": "{}", "expires_in": 86_400}
    await fetch_all(engine, RECORD_BATCH, columns | {"input_file_id": file_id.removeprefix("file-")})
    old = text("UPDATE batches SET created_at = now() - interval '1 minute' WHERE id = :id")
    await fetch_all(engine, old, {"id": row["id"]})
    return UUID(str(row["id"]))


async def unread(engine: AsyncEngine) -> set[UUID]:
    return {row["id"] for row in await fetch_all(engine, SELECT_UNREAD, {"mine": [], "taken": []})}


async def test_a_batch_whose_reader_died_is_taken_up_and_one_that_is_read_is_left_alone(
    client: httpx.AsyncClient, engine: AsyncEngine, tenant: Tenant, api_database_url: str, api_redis_url: str
) -> None:
    batch_id = await record(engine, client, tenant, await upload(client, [line("a")]))
    catalog, wakeups = load_catalog(CATALOG), Wakeups(api_redis_url)
    with psycopg.connect(api_database_url.replace("+psycopg", ""), autocommit=True) as reader:
        reader.execute("SELECT pg_advisory_lock(1914007353, hashtext(%s))", [str(batch_id)])
        assert batch_id not in await unread(engine)
    await until(lambda: _is_in(batch_id, engine))
    own = create_engine(api_database_url, name="reader", pool_size=3)
    counters = Counters(api_redis_url, timeout_s=5)
    await validate(own, batch_id, catalog, Router(catalog), wakeups, RateLimiter(catalog.plans, counters))
    await counters.close()
    await own.dispose()
    await wakeups.close()
    assert (await client.get(f"/v1/batches/batch_{batch_id.hex}")).json()["status"] == "in_progress"
    assert batch_id not in await unread(engine)


async def _is_in(batch_id: UUID, engine: AsyncEngine) -> bool:
    return batch_id in await unread(engine)


async def test_a_batch_whose_file_is_deleted_before_it_is_read_fails(
    client: httpx.AsyncClient, engine: AsyncEngine, tenant: Tenant
) -> None:
    file_id = await upload(client, [line("a")])
    batch_id = await record(engine, client, tenant, file_id)
    await client.delete(f"/v1/files/{file_id}")

    async def has_failed() -> bool:
        batch = (await client.get(f"/v1/batches/batch_{batch_id.hex}")).json()
        return bool(batch["status"] == "failed" and batch["errors"]["data"][0]["param"] == "input_file_id")

    await until(has_failed, 30)


async def large(client: httpx.AsyncClient) -> str:
    """The id of a file that a process of its own must read."""
    return await upload(client, [line(f"r{number}") for number in range(2000)])


async def statuses(client: httpx.AsyncClient) -> list[str]:
    return [batch["status"] for batch in (await client.get("/v1/batches")).json()["data"]]


async def test_a_tenants_many_files_do_not_keep_anothers_waiting(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.batches.validators.PROCESSES", 1)
    monkeypatch.setattr("api.batches.validators.PROCESSES_OF_TENANT", 1)
    many, one = await large(client), await large(stranger)
    for _ in range(6):
        await create(client, many)
    await create(stranger, one)

    async def theirs_has_begun() -> bool:
        return await statuses(stranger) == ["in_progress"]

    await until(theirs_has_begun, 60)
    assert (await statuses(client)).count("validating") >= 3

    async def all_have_begun() -> bool:
        return await statuses(client) == ["in_progress"] * 6

    await until(all_have_begun, 60)


async def test_the_oldest_unread_file_of_each_tenant_is_offered_with_how_many_of_its_are_read(
    client: httpx.AsyncClient,
    stranger: httpx.AsyncClient,
    engine: AsyncEngine,
    tenant: Tenant,
    api_database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("api.batches.validators.PROCESSES", 0)  # only this test looks
    file_id = await upload(client, [line("a")])
    first, second, third = [await record(engine, client, tenant, file_id) for _ in range(3)]
    ids = {first, second, third}

    async def offered(**known: list[UUID]) -> list[tuple[UUID, int]]:
        rows = await fetch_all(engine, SELECT_UNREAD, {"mine": [], "taken": []} | known)
        return [(row["id"], row["files_read"]) for row in rows if row["id"] in ids]

    oldest, middle, newest = sorted(ids)
    assert await offered() == [(oldest, 0)]
    assert await offered(taken=[oldest]) == [(middle, 0)]
    with psycopg.connect(api_database_url.replace("+psycopg", ""), autocommit=True) as reader:
        reader.execute("SELECT pg_advisory_lock(1914007353, hashtext(%s))", [str(oldest)])
        assert await offered() == [(middle, 1)]
    new = text("UPDATE batches SET created_at = now() WHERE id = ANY(:ids)")
    await fetch_all(engine, new, {"ids": list(ids)})
    assert await offered() == []
    assert await offered(mine=[newest]) == [(newest, 0)]
    await fetch_all(engine, text("DELETE FROM batches WHERE id = ANY(:ids)"), {"ids": list(ids)})


async def test_a_file_whose_readers_die_again_and_again_fails_its_batch(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.batches.validators.COMMAND", ("-c", "import os; os.kill(os.getpid(), 9)"))
    monkeypatch.setattr("api.batches.validators.LOOK_S", 0.2)
    await create(client, await large(client))

    async def has_failed() -> bool:
        return await statuses(client) == ["failed"]

    await until(has_failed, 60)
    (batch,) = (await client.get("/v1/batches")).json()["data"]
    assert "more memory to read" in batch["errors"]["data"][0]["message"]


async def test_a_file_that_takes_too_long_to_read_fails_its_batch(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.batches.validators.TIME_LIMIT_S", 0.05)
    await create(client, await large(client))

    async def has_failed() -> bool:
        return await statuses(client) == ["failed"]

    await until(has_failed, 30)
    (batch,) = (await client.get("/v1/batches")).json()["data"]
    assert "more time to read" in batch["errors"]["data"][0]["message"]
