"""Long polling: an answer as soon as the job finishes, by wake-up or, when that is lost, by looking."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from api.deps import Services
from api.local.ports import choose_port
from api.routes.jobs import preferred_wait_s
from api.settings import ApiSettings
from tests.api.acting import Json, Tenant, Worker, code_of, serving, submit, until

pytestmark = pytest.mark.anyio


def services(app: FastAPI) -> Services:
    found: Services = app.state.services
    return found


async def waiters_reach(app: FastAPI, count: int) -> None:
    async def reached() -> bool:
        return services(app).waiters.count == count

    await until(reached)


@contextlib.asynccontextmanager
async def waiting(
    app: FastAPI, client: httpx.AsyncClient, job: Json, seconds: int = 60
) -> AsyncIterator["asyncio.Task[httpx.Response]"]:
    """A request that waits for a job, and is known to."""
    before = services(app).waiters.count
    request = asyncio.create_task(client.get(job["status_url"], params={"wait": seconds}))
    await waiters_reach(app, before + 1)
    try:
        yield request
    finally:
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)


async def test_a_waiting_request_is_answered_when_the_job_finishes(
    app: FastAPI, client: httpx.AsyncClient, worker: Worker
) -> None:
    job = await submit(client)
    async with waiting(app, client, job) as request:
        await asyncio.sleep(0.2)
        assert not request.done()
        await worker.complete(job)
        response = await asyncio.wait_for(request, 5)
    assert response.json()["status"] == "completed"
    assert services(app).waiters.count == 0


async def test_a_finished_job_is_not_waited_for(client: httpx.AsyncClient, worker: Worker) -> None:
    job = await submit(client)
    await worker.complete(job)
    started = monotonic()
    assert (await client.get(job["status_url"], params={"wait": 60})).json()["status"] == "completed"
    assert monotonic() - started < 5


async def test_a_wait_ends_with_its_time(client: httpx.AsyncClient) -> None:
    job = await submit(client)
    response = await client.get(job["status_url"], params={"wait": 1})
    assert (response.status_code, response.json()["status"]) == (200, "queued")
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("wait", [61, -1, "x", 1.5])
async def test_a_wait_that_cannot_be_is_refused(client: httpx.AsyncClient, wait: object) -> None:
    response = await client.get("/status/job_01a1fcbec45f76958cf469824f9538bf", params={"wait": str(wait)})
    assert (response.status_code, code_of(response)) == (422, "validation_failed")
    assert response.json()["errors"][0]["field"] == "wait"


async def test_a_lost_wake_up_costs_a_second(app: FastAPI, client: httpx.AsyncClient, worker: Worker) -> None:
    job = await submit(client)
    async with waiting(app, client, job) as request:
        await worker.finish(await worker.claim(job))  # and nothing is announced
        assert (await asyncio.wait_for(request, 5)).json()["status"] == "completed"


async def test_waiting_works_without_redis(settings: ApiSettings, tenant: Tenant, worker: Worker) -> None:
    nowhere = f"redis://127.0.0.1:{choose_port('127.0.0.1', [])}/0"
    app = create_app(settings.model_copy(update={"redis_url": nowhere}))
    async with app.router.lifespan_context(app), serving(app, tenant) as client:
        job = await submit(client)
        async with waiting(app, client, job) as request:
            await worker.complete(job)
            assert (await asyncio.wait_for(request, 5)).json()["status"] == "completed"


async def test_hundreds_wait_without_a_connection_each(
    app: FastAPI, client: httpx.AsyncClient, worker: Worker, settings: ApiSettings
) -> None:
    job = await submit(client)
    requests = [asyncio.create_task(client.get(job["status_url"], params={"wait": 60})) for _ in range(300)]
    await waiters_reach(app, 300)
    other = await submit(client)  # the pool is free for others
    assert (await client.get(other["status_url"])).status_code == 200
    await worker.complete(job)
    responses = await asyncio.wait_for(asyncio.gather(*requests), 20)
    assert {response.json()["status"] for response in responses} == {"completed"}
    assert settings.api_pool_size < 300


async def test_preferring_to_wait_gives_the_finished_job(
    app: FastAPI, client: httpx.AsyncClient, worker: Worker
) -> None:
    headers = {"prefer": "wait=30"}
    request = asyncio.create_task(client.post("/v1/jobs", json={"prompt": "x"}, headers=headers))
    await waiters_reach(app, 1)
    (job,) = (await client.get("/v1/jobs")).json()["data"]
    await worker.complete(job)
    response = await asyncio.wait_for(request, 5)
    assert (response.status_code, response.json()["status"]) == (200, "completed")
    assert response.headers["location"] == job["status_url"]
    assert response.headers["preference-applied"] == "wait=30"


async def test_preferring_to_wait_longer_than_it_takes_gives_the_job_as_it_is(
    client: httpx.AsyncClient,
) -> None:
    response = await client.post("/v1/jobs", json={"prompt": "x"}, headers={"prefer": "wait=1"})
    assert (response.status_code, response.json()["status"]) == (202, "queued")


async def test_a_replay_waits_too(app: FastAPI, client: httpx.AsyncClient, worker: Worker) -> None:
    headers = {"idempotency-key": "k"}
    job = (await client.post("/v1/jobs", json={"prompt": "x"}, headers=headers)).json()
    again = asyncio.create_task(client.post("/v1/jobs", json={"prompt": "x"}, headers=headers | {"prefer": "wait=30"}))
    await waiters_reach(app, 1)
    await worker.complete(job)
    response = await asyncio.wait_for(again, 5)
    assert (response.status_code, response.headers["idempotent-replayed"]) == (200, "true")
    assert response.json()["status"] == "completed"


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        ("wait=5", 5),
        ("respond-async, wait=10", 10),
        ("Wait = 7; foo", 7),
        ('wait="3"', 3),
        ("wait=600", 60),
        ("wait=99999999999999999999", 60),
        ("wait=0", 0),
        ("wait=-1", 0),
        ("wait=soon", 0),
        ("await=5", 0),
        ("respond-async", 0),
        ("", 0),
    ],
)
def test_the_preference_is_read_leniently(prefer: str, seconds: int) -> None:
    assert preferred_wait_s(_Request(prefer)) == seconds  # type: ignore[arg-type]  # only its headers are read


class _Request:
    def __init__(self, prefer: str) -> None:
        self.headers: dict[str, Any] = {"prefer": prefer}  # Any: as Starlette's Headers
