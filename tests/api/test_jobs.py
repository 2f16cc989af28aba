"""Reading, listing and cancelling jobs."""

import asyncio
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import fetch_all
from models.wakeups import CANCEL, DUE, FINISHED, Wakeups
from tests.api.acting import Json, Worker, code_of, submit, uuid_of

pytestmark = pytest.mark.anyio

NOBODYS_IDS = [
    "job_01a1fcbec45f76958cf469824f9538bf",
    "job_",
    "job_xyz",
    "01a1fcbec45f76958cf469824f9538bf",
    "batch_01a1fcbec45f76958cf469824f9538bf",
    "job_%00",
    "job_" + "0" * 5000,
]


async def test_a_completed_job_shows_its_result_cost_and_attempts(client: httpx.AsyncClient, worker: Worker) -> None:
    job = await submit(client)
    await worker.complete(job)
    response = await client.get(f"/v1/jobs/{job['id']}")
    done = response.json()
    assert "retry-after" not in response.headers
    assert (done["status"], done["progress"], done["error"]) == ("completed", 1.0, None)
    assert list(done["result"].items()) == [("text", "Hello."), ("finish_reason", "stop"), ("model", "tiny")]
    assert done["usage"] == {"input_tokens": 12, "output_tokens": 40, "total_tokens": 52}
    assert done["cost_usd"] == "0.000092"
    assert done["created_at"] <= done["started_at"] <= done["finished_at"]
    assert done["next_attempt_at"] is None
    (attempt,) = done["attempts"]
    assert attempt.pop("started_at") == done["started_at"]
    assert attempt == {
        "number": 1,
        "model": "tiny",
        "provider": "mock",
        "outcome": "completed",
        "error": None,
        "duration_ms": 812,
        "time_to_first_token_ms": 95,
        "usage": {"input_tokens": 12, "output_tokens": 40, "total_tokens": 52},
        "cost_usd": "0.000092",
        "adapted": [],
    }


async def test_a_job_that_waits_for_a_retry_says_until_when(client: httpx.AsyncClient, worker: Worker) -> None:
    job = await submit(client)
    failure = {"code": "overloaded", "message": "busy", "retryable": True}
    await worker.finish(await worker.claim(job), "queued", error=failure, retry_in_s=20)
    response = await client.get(job["status_url"])
    waiting = response.json()
    assert (waiting["status"], waiting["progress"], waiting["error"]) == ("queued", 0.0, None)
    assert waiting["next_attempt_at"] > waiting["created_at"]
    assert 15 <= int(response.headers["retry-after"]) <= 20
    assert waiting["attempts"][0]["error"] == failure
    assert waiting["usage"]["total_tokens"] == 52


async def test_a_job_that_runs_has_an_open_attempt(client: httpx.AsyncClient, worker: Worker) -> None:
    job = await submit(client)
    await worker.claim(job)
    running = (await client.get(job["status_url"])).json()
    assert (running["status"], running["progress"], running["usage"]) == ("in_progress", 0.0, None)
    assert (running["attempts"][0]["outcome"], running["attempts"][0]["duration_ms"]) == (None, None)


@pytest.mark.parametrize("path", ["/status/{}", "/v1/jobs/{}", "/v1/jobs/{}/cancel"])
async def test_another_tenants_job_does_not_exist(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient, path: str
) -> None:
    job = await submit(client)
    method = "POST" if path.endswith("cancel") else "GET"
    response = await stranger.request(method, path.format(job["id"]))
    assert (response.status_code, code_of(response)) == (404, "not_found")
    assert (await client.get(job["status_url"])).json()["status"] == "queued"


@pytest.mark.parametrize("job_id", NOBODYS_IDS)
async def test_an_id_of_nothing_is_not_found(client: httpx.AsyncClient, job_id: str) -> None:
    response = await client.get(f"/status/{job_id}")
    assert (response.status_code, code_of(response)) == (404, "not_found")


async def page_of(client: httpx.AsyncClient, **params: Any) -> Json:  # Any: query parameters
    response = await client.get("/v1/jobs", params=params)
    assert response.status_code == 200, response.text
    page: Json = response.json()
    return page


async def test_a_list_is_paged_newest_first(client: httpx.AsyncClient, stranger: httpx.AsyncClient) -> None:
    jobs = [await submit(client, user=str(n)) for n in range(5)]
    await submit(stranger)
    first = await page_of(client, limit=2)
    assert [job["id"] for job in first["data"]] == [jobs[4]["id"], jobs[3]["id"]]
    assert (first["object"], first["has_more"]) == ("list", True)
    assert (first["first_id"], first["last_id"]) == (jobs[4]["id"], jobs[3]["id"])
    rest = await page_of(client, limit=3, after=first["last_id"])
    assert [job["id"] for job in rest["data"]] == [jobs[n]["id"] for n in (2, 1, 0)]
    assert rest["has_more"] is False
    assert rest["data"][0] == (await client.get(jobs[2]["status_url"])).json()


async def test_an_empty_list_has_no_ids(client: httpx.AsyncClient) -> None:
    assert await page_of(client) == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


async def test_a_list_has_twenty_jobs_unless_told(client: httpx.AsyncClient) -> None:
    await asyncio.gather(*(submit(client) for _ in range(21)))
    page = await page_of(client)
    assert (len(page["data"]), page["has_more"]) == (20, True)
    assert len((await page_of(client, limit=100))["data"]) == 21


async def test_a_list_is_filtered_by_status(client: httpx.AsyncClient, worker: Worker) -> None:
    done, _ = await submit(client), await submit(client)
    await worker.complete(done)
    assert [job["id"] for job in (await page_of(client, status="completed"))["data"]] == [done["id"]]
    assert (await page_of(client, status="expired"))["data"] == []


async def test_no_job_belongs_to_a_batch_yet(client: httpx.AsyncClient) -> None:
    await submit(client)
    assert (await page_of(client, batch_id="batch_1"))["data"] == []


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"status": "done"}, "status"),
        ({"after": "x"}, "after"),
    ],
)
async def test_a_wrong_parameter_is_named(client: httpx.AsyncClient, params: Json, field: str) -> None:
    response = await client.get("/v1/jobs", params=params)
    assert (response.status_code, code_of(response)) == (422, "validation_failed")
    assert [problem["field"] for problem in response.json()["errors"]] == [field]


async def test_a_job_that_waits_is_cancelled_at_once(client: httpx.AsyncClient, worker: Worker) -> None:
    job = await submit(client)
    response = await client.post(f"/v1/jobs/{job['id']}/cancel")
    cancelled = response.json()
    assert response.status_code == 200
    assert (cancelled["status"], cancelled["progress"], cancelled["error"]) == ("cancelled", 1.0, None)
    assert cancelled["finished_at"] is not None


async def test_a_job_that_runs_is_cancelled_by_its_worker(
    client: httpx.AsyncClient, worker: Worker, api_redis_url: str
) -> None:
    job = await submit(client)
    claimed = await worker.claim(job)
    async with listening(api_redis_url, CANCEL) as heard:
        request = asyncio.create_task(client.post(f"/v1/jobs/{job['id']}/cancel"))
        assert await heard.get() == (CANCEL, [uuid_of(job).hex])
        await worker.finish(claimed, "cancelled")
        worker.announce(job)
        cancelled = (await request).json()
    assert cancelled["status"] == cancelled["attempts"][0]["outcome"] == "cancelled"
    assert cancelled["usage"]["total_tokens"] == 52


async def test_a_cancellation_that_takes_long_is_answered_before_it_is_done(
    client: httpx.AsyncClient, worker: Worker
) -> None:
    job = await submit(client)
    await worker.claim(job)
    response = await client.post(f"/v1/jobs/{job['id']}/cancel")
    assert (response.status_code, response.json()["status"]) == (200, "in_progress")
    assert (await client.post(f"/v1/jobs/{job['id']}/cancel")).status_code == 200


async def test_a_finished_job_cannot_be_cancelled(client: httpx.AsyncClient, worker: Worker) -> None:
    job = await submit(client)
    await worker.complete(job)
    response = await client.post(f"/v1/jobs/{job['id']}/cancel")
    assert (response.status_code, code_of(response)) == (409, "job_finished")
    assert "completed" in response.json()["detail"]


async def test_submitting_and_cancelling_wake_those_concerned(client: httpx.AsyncClient, api_redis_url: str) -> None:
    async with listening(api_redis_url, DUE, FINISHED) as heard:
        job = await submit(client)
        assert (await heard.get())[0] == DUE
        await client.post(f"/v1/jobs/{job['id']}/cancel")
        assert sorted([await heard.get(), await heard.get()]) == [(DUE, []), (FINISHED, [uuid_of(job).hex])]


printable = st.text(st.characters(exclude_characters="/\\", exclude_categories=["Cs"]), max_size=60)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    job_id=printable.map(lambda text: f"job_{text}") | printable,
    params=st.dictionaries(st.sampled_from(["status", "limit", "after", "batch_id", "wait"]), printable),
)
async def test_no_read_is_answered_with_a_server_error(client: httpx.AsyncClient, job_id: str, params: Json) -> None:
    path = quote(job_id, safe="")
    for url in (f"/status/{path}", f"/v1/jobs/{path}"):
        assert (await client.get(url, params={"wait": params.get("wait", "0")})).status_code in {404, 422}
    assert (await client.post(f"/v1/jobs/{path}/cancel")).status_code == 404
    assert (await client.get("/v1/jobs", params=params)).status_code in {200, 422}


@pytest.mark.parametrize("status", ["failed", "expired"])
async def test_every_end_has_progress_one(
    client: httpx.AsyncClient, engine: AsyncEngine, worker: Worker, status: str
) -> None:
    job = await submit(client)
    error = {"code": "internal", "message": "it broke", "retryable": False}
    await worker.finish(await worker.claim(job), status, error=error, input_tokens=0, output_tokens=0)
    ended = (await client.get(job["status_url"])).json()
    assert (ended["status"], ended["progress"], ended["error"]) == (status, 1.0, error)
    assert ended["usage"] == {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}


async def test_retry_after_grows_with_the_age_of_a_job(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    job = await submit(client)
    aged = text("UPDATE jobs SET created_at = now() - make_interval(secs => :age) WHERE id = :id")
    for age, expected in ((65, 7), (10_000, 30)):
        await fetch_all(engine, aged, {"age": age, "id": uuid_of(job)})
        assert int((await client.get(job["status_url"])).headers["retry-after"]) == expected


class listening:  # noqa: N801 - reads as a verb
    """What is announced on some channels while the block runs, as a queue of (channel, ids)."""

    def __init__(self, redis_url: str, *channels: str) -> None:
        self._wakeups = Wakeups(redis_url)
        self._channels = channels

    async def __aenter__(self) -> "asyncio.Queue[tuple[str, list[str]]]":
        heard: asyncio.Queue[tuple[str, list[str]]] = asyncio.Queue()
        self._task = asyncio.create_task(self._listen(heard))
        while heard.empty():  # subscribed once it hears itself
            self._wakeups.announce(self._channels[0], ["ready"])
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        while not heard.empty():
            heard.get_nowait()
        return heard

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._wakeups.close()

    async def _listen(self, heard: "asyncio.Queue[tuple[str, list[str]]]") -> None:
        async for announcement in self._wakeups.listen(*self._channels):
            heard.put_nowait(announcement)
