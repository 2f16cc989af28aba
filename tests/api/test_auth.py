"""API keys: who gets in, and how soon a revocation acts."""

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from models.account import create_key, generate_key, split_key
from models.database import fetch_all
from tests.api.acting import Tenant, code_of, until

pytestmark = pytest.mark.anyio

GUARDED = [
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/jobs/job_01a1fcbec45f76958cf469824f9538bf"),
    ("GET", "/status/job_01a1fcbec45f76958cf469824f9538bf"),
    ("POST", "/v1/jobs/job_01a1fcbec45f76958cf469824f9538bf/cancel"),
]


async def status_with(client: httpx.AsyncClient, authorization: str | bytes | None) -> int:
    raw = authorization.encode("latin-1") if isinstance(authorization, str) else authorization
    headers = {} if raw is None else {b"authorization": raw}
    client.headers.pop("authorization", None)
    return (await client.get("/v1/jobs", headers=headers)).status_code


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_every_resource_wants_a_key(client: httpx.AsyncClient, method: str, path: str) -> None:
    response = await client.request(method, path, headers={"authorization": ""})
    assert (response.status_code, code_of(response)) == (401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer hr_",
        "Bearer hr_a_b",
        "Bearer " + "x" * 5000,
        "Bearer hr_\x7f_\x01",
        b"Bearer hr_\xff_\xfe",
        b"Bearer hr_a\x00_b",
        "Basic aHI6eA==",
    ],
)
async def test_what_is_no_key_is_refused(client: httpx.AsyncClient, authorization: str | bytes | None) -> None:
    assert await status_with(client, authorization) == 401


async def test_the_right_lookup_with_another_secret_is_refused(client: httpx.AsyncClient, tenant: Tenant) -> None:
    parts = split_key(tenant.key)
    assert parts is not None
    assert await status_with(client, f"Bearer hr_{parts[0]}_{'0' * 48}") == 401
    assert await status_with(client, f"bearer  {tenant.key}") == 200


@pytest.mark.parametrize("end", ["revoked_at = now()", "expires_at = now()"])
async def test_a_key_that_ended_is_refused_within_the_cache_time(
    client: httpx.AsyncClient, tenant: Tenant, engine: AsyncEngine, end: str
) -> None:
    assert (await client.get("/v1/jobs")).status_code == 200
    await fetch_all(engine, text(f"UPDATE api_keys SET {end} WHERE tenant_id = :id"), {"id": tenant.id})

    async def is_refused() -> bool:
        return (await client.get("/v1/jobs")).status_code == 401

    await until(is_refused)


async def test_two_keys_of_a_tenant_see_the_same_jobs(
    client: httpx.AsyncClient, tenant: Tenant, engine: AsyncEngine
) -> None:
    await client.post("/v1/jobs", json={"prompt": "x"})
    other = await create_key(engine, tenant.id, "other")
    response = await client.get("/v1/jobs", headers={"authorization": f"Bearer {other}"})
    assert len(response.json()["data"]) == 1


async def test_a_key_works_although_it_was_tried_before_it_existed(
    client: httpx.AsyncClient, tenant: Tenant, engine: AsyncEngine
) -> None:
    key = generate_key()
    assert await status_with(client, f"Bearer {key.text}") == 401
    await fetch_all(
        engine,
        text(
            "INSERT INTO api_keys (id, tenant_id, lookup, secret_hash, name)"
            " VALUES (gen_random_uuid(), :tenant, :lookup, :hash, 'late')"
        ),
        {"tenant": tenant.id, "lookup": key.lookup, "hash": key.secret_hash},
    )

    async def is_accepted() -> bool:
        return await status_with(client, f"Bearer {key.text}") == 200

    await until(is_accepted)
