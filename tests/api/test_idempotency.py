"""Promise 2 at the front door: the same Idempotency-Key never makes a second job."""

import asyncio
from collections import Counter

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import fetch_one
from tests.api.acting import Json, Tenant, Worker, code_of

pytestmark = pytest.mark.anyio

BODY = {"prompt": "Say hello."}


async def post(client: httpx.AsyncClient, key: str | bytes, body: Json | None = None) -> httpx.Response:
    raw = key.encode() if isinstance(key, str) else key
    return await client.post("/v1/jobs", json=body or BODY, headers={b"idempotency-key": raw})


async def count_jobs(engine: AsyncEngine, tenant: Tenant) -> int:
    row = await fetch_one(engine, text("SELECT count(*) FROM jobs WHERE tenant_id = :id"), {"id": tenant.id})
    assert row is not None
    return int(row["count"])


async def test_the_same_key_and_body_is_the_same_job(client: httpx.AsyncClient) -> None:
    first, second = await post(client, "order-1"), await post(client, "order-1")
    assert (first.status_code, second.status_code) == (202, 200)
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["location"] == first.headers["location"]
    assert second.json() == first.json()


async def test_a_replay_shows_the_job_as_it_is_now(client: httpx.AsyncClient, worker: Worker) -> None:
    first = await post(client, "order-1")
    await worker.complete(first.json())
    assert (await post(client, "order-1")).json()["status"] == "completed"


async def test_the_same_request_written_otherwise_is_a_replay(client: httpx.AsyncClient) -> None:
    await post(client, "order-1", {"prompt": "x", "max_tokens": 256})
    assert (await post(client, "order-1", {"priority": "normal", "prompt": "x"})).status_code == 200


async def test_another_body_under_the_same_key_is_a_mismatch(client: httpx.AsyncClient) -> None:
    await post(client, "order-1")
    response = await post(client, "order-1", {"prompt": "Say goodbye."})
    assert (response.status_code, code_of(response)) == (422, "idempotency_mismatch")


async def test_keys_of_different_tenants_are_different(client: httpx.AsyncClient, stranger: httpx.AsyncClient) -> None:
    first, other = await post(client, "order-1"), await post(stranger, "order-1")
    assert (first.status_code, other.status_code) == (202, 202)
    assert first.json()["id"] != other.json()["id"]


async def test_fifty_at_once_make_one_job(client: httpx.AsyncClient, engine: AsyncEngine, tenant: Tenant) -> None:
    responses = await asyncio.gather(*(post(client, "order-1") for _ in range(50)))
    assert Counter(response.status_code for response in responses) == {202: 1, 200: 49}
    assert len({response.json()["id"] for response in responses}) == 1
    assert await count_jobs(engine, tenant) == 1


async def test_of_two_bodies_at_once_one_wins(client: httpx.AsyncClient, engine: AsyncEngine, tenant: Tenant) -> None:
    bodies = [{"prompt": f"variant {n % 2}"} for n in range(20)]
    responses = await asyncio.gather(*(post(client, "order-1", body) for body in bodies))
    assert Counter(response.status_code for response in responses) == {202: 1, 200: 9, 422: 10}
    assert await count_jobs(engine, tenant) == 1


@pytest.mark.parametrize("key", ["", "k" * 256, "tab\there", b"caf\xe9"])
async def test_an_unusable_key_is_refused(client: httpx.AsyncClient, key: str | bytes) -> None:
    response = await post(client, key)
    assert (response.status_code, code_of(response)) == (422, "validation_failed")
    assert response.json()["error"]["param"] == "Idempotency-Key"


async def test_the_longest_key_is_kept(client: httpx.AsyncClient) -> None:
    first, second = await post(client, "k" * 255), await post(client, "k" * 255)
    assert first.json()["id"] == second.json()["id"]


async def test_without_a_key_equal_requests_are_different_jobs(client: httpx.AsyncClient) -> None:
    first, second = [await client.post("/v1/jobs", json=BODY) for _ in range(2)]
    assert first.json()["id"] != second.json()["id"]
