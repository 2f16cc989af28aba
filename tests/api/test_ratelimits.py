"""Rate limits of an API key: each limit, all of them together, and what the caller is told."""

import asyncio
import dataclasses
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.app import create_app
from api.counters import Counters
from api.local.valkey import EmbeddedValkey
from api.ratelimits import RateLimiter, worst_tokens
from api.settings import ApiSettings
from models.account import create_key, create_tenant
from models.database import create_engine, fetch_all
from models.ids import new_id
from tests.api.acting import Clock, Tenant, code_of, serving, until
from tests.stack import Database, Stack

pytestmark = pytest.mark.anyio

NAMES = ["requests-per-minute", "tokens-per-minute", "requests-per-day"]
FREE = [10, 10_000, 100]
PLANS = """
[plans.wordy]
tokens_per_minute = 1000
[plans.daily]
requests_per_day = 3
[plans.shared]
requests_per_minute = 60
[plans.open]
"""
PATIENT_S = "5"


@pytest.fixture
def settings(settings: ApiSettings, tmp_path_factory: pytest.TempPathFactory) -> ApiSettings:
    """The API's settings, with plans in its catalogue, and a Redis that is waited for on a busy machine."""
    assert settings.catalog is not None
    catalog = tmp_path_factory.mktemp("plans") / "catalog.toml"
    catalog.write_text(settings.catalog.read_text() + PLANS)
    return settings.model_copy(update={"catalog": catalog, "rate_limit_timeout_s": float(PATIENT_S)})


@pytest.fixture
async def app(app: FastAPI, settings: ApiSettings, clock: Clock) -> AsyncIterator[FastAPI]:
    """The app, whose limits go by the test's clock."""
    services = app.state.services
    counters = Counters(settings.redis_url, timeout_s=float(PATIENT_S), clock=clock)
    limiter = RateLimiter(services.catalog.plans, counters)
    app.state.services = dataclasses.replace(services, limiter=limiter)
    yield app
    await counters.close()


async def limited(engine: AsyncEngine, plan: str | None) -> Tenant:
    """A new tenant whose key has a plan."""
    tenant_id = await create_tenant(engine, f"tenant-{new_id().hex}")
    return Tenant(tenant_id, await create_key(engine, tenant_id, "test", plan))


@pytest.fixture
async def free(app: FastAPI, engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """A client on the free plan."""
    async with serving(app, await limited(engine, "free")) as client:
        yield client


async def post(client: httpx.AsyncClient, **fields: object) -> httpx.Response:
    headers = fields.pop("headers", None)
    assert headers is None or isinstance(headers, dict)
    return await client.post("/v1/jobs", json={"prompt": "x", "max_tokens": 1} | fields, headers=headers)


def items(header: str) -> dict[str, dict[str, int]]:
    """A list of structured-field items: quoted names with integer parameters."""
    parsed = {}
    for item in header.split(", "):
        assert re.fullmatch(r'"[a-z-]+"(;[a-z]+=\d+)+', item), header
        name, *parameters = item.split(";")
        parsed[name.strip('"')] = {pair[0]: int(pair[2:]) for pair in parameters}
    return parsed


def left(headers: Mapping[str, str]) -> list[int]:
    """What is left of each limit."""
    found = items(headers["ratelimit"])
    return [found[name]["r"] for name in NAMES if name in found]


async def test_an_accepted_job_says_what_its_key_has_left(free: httpx.AsyncClient) -> None:
    response = await post(free)
    assert response.status_code == 202
    policy = items(response.headers["ratelimit-policy"])
    assert [(name, policy[name]["q"], policy[name]["w"]) for name in NAMES] == [
        (NAMES[0], 10, 60),
        (NAMES[1], 10_000, 60),
        (NAMES[2], 100, 86_400),
    ]
    charged = worst_tokens({"messages": [{"content": "x"}], "max_tokens": 1})
    assert left(response.headers) == [9, 10_000 - charged, 99]
    assert [entry["t"] for entry in items(response.headers["ratelimit"]).values()] == [60, 60, 86_400]


async def test_requests_per_minute_are_limited_and_a_refusal_says_when_to_come_back(
    free: httpx.AsyncClient, clock: Clock
) -> None:
    statuses = [(await post(free)).status_code for _ in range(10)]
    assert statuses == [202] * 10
    clock.now_ms += 12_000
    response = await post(free)
    assert (response.status_code, code_of(response)) == (429, "rate_limited")
    assert response.json()["error"]["type"] == "rate_limit_error"
    assert "10 requests per minute" in response.json()["detail"]
    assert left(response.headers)[0] == 0
    wait_s = int(response.headers["retry-after"])
    assert items(response.headers["ratelimit"])[NAMES[0]]["t"] == wait_s == 48 + 6  # a tenth of 60 s has to fade
    clock.now_ms += (wait_s - 1) * 1000
    assert (await post(free)).status_code == 429
    clock.now_ms += 1000
    assert (await post(free)).status_code == 202


async def test_the_window_slides(free: httpx.AsyncClient, clock: Clock) -> None:
    for _ in range(10):
        await post(free)
    clock.now_ms += 90_000
    assert [(await post(free)).status_code for _ in range(6)] == [202] * 5 + [429]
    clock.now_ms += 120_000
    assert [(await post(free)).status_code for _ in range(11)] == [202] * 10 + [429]


async def test_tokens_per_minute_are_limited_by_the_worst_case(app: FastAPI, engine: AsyncEngine, clock: Clock) -> None:
    async with serving(app, await limited(engine, "wordy")) as client:
        most = 1000 - worst_tokens({"messages": [{"content": "x"}], "max_tokens": 0})
        assert left((await post(client, max_tokens=most - 300)).headers) == [300]
        response = await post(client, max_tokens=300)
        assert (response.status_code, code_of(response)) == (429, "rate_limited")
        assert "1,000 tokens per minute" in response.json()["detail"]
        assert left(response.headers) == [300]
        clock.now_ms += int(response.headers["retry-after"]) * 1000
        assert (await post(client, max_tokens=300)).status_code == 202


async def test_a_request_beyond_the_whole_quota_is_told_not_to_come_again(app: FastAPI, engine: AsyncEngine) -> None:
    async with serving(app, await limited(engine, "wordy")) as client:
        response = await post(client, prompt="x" * 900)
        assert response.status_code == 429
        assert response.headers["x-should-retry"] == "false"
        assert "shorten it" in response.json()["detail"]
        assert int(response.headers["retry-after"]) >= 1
        assert left(response.headers) == [1000]


async def test_requests_per_day_are_limited(app: FastAPI, engine: AsyncEngine, clock: Clock) -> None:
    async with serving(app, await limited(engine, "daily")) as client:
        for _ in range(3):
            assert (await post(client)).status_code == 202
            clock.now_ms += 3_600_000
        response = await post(client)
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) == (21 + 8) * 3600  # the window's end, then a third has to fade
        clock.now_ms += int(response.headers["retry-after"]) * 1000
        assert (await post(client)).status_code == 202


async def test_a_refused_request_takes_nothing_of_any_limit(free: httpx.AsyncClient) -> None:
    await post(free, max_tokens=900, prompt="x" * 7000)
    before = left((await post(free)).headers)
    refused = [await post(free, max_tokens=900, prompt="x" * 7000) for _ in range(12)]
    assert {response.status_code for response in refused} == {429}
    assert left(refused[-1].headers) == before
    assert left((await post(free)).headers)[0] == before[0] - 1


async def test_concurrent_requests_share_one_count(free: httpx.AsyncClient) -> None:
    responses = await asyncio.gather(*(post(free) for _ in range(40)))
    assert Counter(response.status_code for response in responses) == {202: 10, 429: 30}
    accepted = sorted(left(response.headers)[0] for response in responses if response.status_code == 202)
    assert accepted == list(range(10))


async def test_a_replay_counts_as_a_request_and_its_tokens_are_given_back(free: httpx.AsyncClient) -> None:
    headers = {"idempotency-key": "k"}
    first = await post(free, headers=headers)
    replay = await post(free, headers=headers)
    assert (replay.status_code, replay.headers["idempotent-replayed"]) == (200, "true")
    mismatch = await post(free, prompt="another", headers=headers)
    assert code_of(mismatch) == "idempotency_mismatch"
    last = left((await post(free)).headers)
    charged = 10_000 - left(first.headers)[1]
    assert last == [10 - 4, 10_000 - 2 * charged, 100 - 4]


async def test_what_is_no_valid_submission_is_not_counted(free: httpx.AsyncClient) -> None:
    assert (await post(free, max_tokens=-1)).status_code == 422
    assert (await post(free, model="nobody")).status_code == 404
    job = (await post(free)).json()
    for _ in range(30):
        assert (await free.get(job["status_url"])).status_code == 200
    assert left((await post(free)).headers)[0] == 8


async def test_two_keys_of_a_tenant_have_limits_of_their_own(app: FastAPI, engine: AsyncEngine) -> None:
    tenant = await limited(engine, "daily")
    other = Tenant(tenant.id, await create_key(engine, tenant.id, "other", "daily"))
    for key in (tenant, other):
        async with serving(app, key) as client:
            assert [(await post(client)).status_code for _ in range(4)] == [202] * 3 + [429]


@pytest.mark.parametrize("plan", [None, "open"])
async def test_a_key_without_limits_is_told_of_none_and_asks_nobody(
    app: FastAPI, engine: AsyncEngine, plan: str | None, api_redis_url: str
) -> None:
    async with serving(app, await limited(engine, plan)) as client:
        responses = await asyncio.gather(*(post(client) for _ in range(150)))
    assert {response.status_code for response in responses} == {202}
    assert not any("ratelimit" in response.headers for response in responses)


async def test_a_plan_that_left_the_catalogue_is_the_smallest(app: FastAPI, engine: AsyncEngine) -> None:
    async with serving(app, await limited(engine, "discontinued")) as client:
        policy = items((await post(client)).headers["ratelimit-policy"])
    assert [policy[name]["q"] for name in NAMES] == FREE


async def test_another_plan_acts_within_the_key_cache_time_and_keeps_what_was_counted(
    app: FastAPI, engine: AsyncEngine
) -> None:
    tenant = await limited(engine, "free")
    async with serving(app, tenant) as client:
        assert [(await post(client)).status_code for _ in range(11)] == [202] * 10 + [429]
        await fetch_all(engine, text("UPDATE api_keys SET plan = 'pro' WHERE tenant_id = :id"), {"id": tenant.id})

        async def is_accepted() -> bool:
            return (await post(client)).status_code == 202

        await until(is_accepted)
        assert left((await post(client)).headers)[0] == 100 - 12


async def test_the_openapi_document_has_the_refusal(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    responses = document["paths"]["/v1/jobs"]["post"]["responses"]
    assert {"Retry-After", "RateLimit", "RateLimit-Policy"} <= set(responses["429"]["headers"])
    assert {"RateLimit", "RateLimit-Policy"} <= set(responses["202"]["headers"])
    assert "429" not in document["paths"]["/v1/jobs"]["get"]["responses"]


async def test_redis_stopped_or_hanging_refuses_nobody_and_delays_hardly_anybody(
    settings: ApiSettings, engine: AsyncEngine, valkey: EmbeddedValkey
) -> None:
    alone = settings.model_copy(update={"redis_url": valkey.url, "rate_limit_timeout_s": 0.1})
    app = create_app(alone)
    async with app.router.lifespan_context(app), serving(app, await limited(engine, "shared")) as client:
        assert left((await post(client)).headers) == [59]
        assert valkey.pid is not None
        os.kill(valkey.pid, signal.SIGSTOP)
        try:
            began = monotonic()
            responses = [await post(client) for _ in range(80)]
            assert monotonic() - began < 80 * 0.1
        finally:
            os.kill(valkey.pid, signal.SIGCONT)
        assert [response.status_code for response in responses] == [202] * 59 + [429] * 21
        assert left(responses[0].headers) == [58]

        async def is_shared() -> bool:
            return (await post(client)).status_code == 202  # Redis has not seen what was counted without it

        await until(is_shared)
        await asyncio.to_thread(valkey.stop)
        assert {(await post(client)).status_code for _ in range(5)} == {202}
        await asyncio.to_thread(valkey.start)


def test_two_api_processes_accept_exactly_the_quota_of_four_clients(stack: Stack, database: Database) -> None:
    stack.settings["HEADRACE_RATE_LIMIT_TIMEOUT_S"] = PATIENT_S
    stack.catalog({"echo": {}})
    catalog = stack.directory / "catalog.toml"
    catalog.write_text(catalog.read_text() + PLANS)
    keys = {"unlimited": database.api_key, "limited": asyncio.run(make_key(database, "shared"))}
    urls = [stack.api()[1], stack.api()[1]]

    def run(number: int, key: str) -> list[httpx.Response]:
        headers = {"authorization": f"Bearer {keys[key]}"}
        with httpx.Client(base_url=urls[number % 2], headers=headers, timeout=30) as client:
            return [client.post("/v1/jobs", json={"prompt": "x"}) for _ in range(50)]

    with ThreadPoolExecutor(4) as pool:
        limited_runs = pool.map(run, range(4), ["limited"] * 4)
        counts = Counter(response.status_code for responses in limited_runs for response in responses)
        assert counts == {202: 60, 429: 140}
        assert database.value("SELECT count(*) FROM jobs") == 60
        unlimited = [*run(0, "unlimited"), *run(1, "unlimited")]
    assert {response.status_code for response in unlimited} == {202}
    assert not any("ratelimit" in response.headers for response in unlimited)


async def make_key(database: Database, plan: str) -> str:
    """The text of a new key of the development tenant that has a plan."""
    engine = create_engine(database.url, name="tests", pool_size=1)
    try:
        return await create_key(engine, database.tenant_id, "limited", plan)
    finally:
        await engine.dispose()
