"""What a plan allows of batches and files: rows are charged by the day, files by number and size."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.counters import Counters
from api.settings import ApiSettings
from models.database import fetch_all
from models.ids import BATCH, from_wire
from tests.api.acting import Json, code_of, serving
from tests.api.test_openai_batches import create, line, upload
from tests.api.test_ratelimits import limited

pytestmark = pytest.mark.anyio

PLANS = """
[plans.daily]
requests_per_day = 50
[plans.rows]
requests_per_day = 50
batch_rows_per_day = 8
[plans.wordy]
batch_tokens_per_day = 2000
[plans.minutes]
requests_per_minute = 1
[plans.few]
batch_rows = 5
[plans.files]
files = 2
file_bytes = 3000
files_expire_after_s = 7200
"""


@pytest.fixture
def settings(settings: ApiSettings, tmp_path_factory: pytest.TempPathFactory) -> ApiSettings:
    """The API's settings, with plans in its catalogue, and a Redis that is waited for on a busy machine."""
    assert settings.catalog is not None
    catalog = tmp_path_factory.mktemp("plans") / "catalog.toml"
    catalog.write_text(settings.catalog.read_text() + PLANS)
    return settings.model_copy(update={"catalog": catalog, "rate_limit_timeout_s": 5.0})


On = Callable[[str | None], Awaitable[httpx.AsyncClient]]


@pytest.fixture
async def on(app: FastAPI, engine: AsyncEngine) -> AsyncIterator[On]:
    """Makes clients whose keys have a plan."""
    async with contextlib.AsyncExitStack() as clients:

        async def client_on(plan: str | None) -> httpx.AsyncClient:
            return await clients.enter_async_context(serving(app, await limited(engine, plan)))

        yield client_on


async def batch_of(client: httpx.AsyncClient, rows: int) -> Json:
    """The batch of a small file with so many rows."""
    batch: Json = (await create(client, await upload(client, [line(f"r{n}") for n in range(rows)]))).json()
    return batch


def code(batch: Json) -> str | None:
    """Why a batch failed; None when it did not."""
    assert batch["status"] in ("failed", "in_progress"), batch
    return None if batch["errors"] is None else str(batch["errors"]["data"][0]["code"])


def sheet(rows: int) -> dict[str, tuple[str, bytes]]:
    return {"file": ("a.csv", b"text\n" + b"hello\n" * rows)}


async def post_sheet(client: httpx.AsyncClient, rows: int, **fields: str) -> httpx.Response:
    form = {"prompt": "Say {{text}}", "model": "wide", "max_tokens": "5"} | fields
    return await client.post("/v1/batches/upload", files=sheet(rows), data=form)


def left(headers: Mapping[str, str], name: str) -> int:
    return int(headers["ratelimit"].partition(f'"{name}";r=')[2].partition(";")[0])


async def test_rows_are_requests_of_the_day(on: On) -> None:
    client = await on("daily")
    assert code(await batch_of(client, 30)) is None  # with the file and the batch: 32 requests
    batch = await batch_of(client, 30)
    assert code(batch) == "rate_limited"
    assert "50 requests per day" in batch["errors"]["data"][0]["message"]
    response = await client.post("/v1/jobs", json={"prompt": "x"})
    assert response.status_code == 202  # what was refused took nothing but its own two requests
    assert left(response.headers, "requests-per-day") == 50 - 30 - 4 - 1
    assert code(await batch_of(client, 13)) is None
    assert (await client.post("/v1/jobs", json={"prompt": "x"})).status_code == 429
    files = {"file": ("rows.jsonl", b"x")}
    refused = await client.post("/v1/files", files=files, data={"purpose": "batch"})
    assert (refused.status_code, code_of(refused)) == (429, "rate_limited")


async def test_a_batch_that_can_never_fit_is_refused_before_it_is_read_to_its_end(on: On) -> None:
    batch = await batch_of(await on("daily"), 51)
    assert code(batch) == "rate_limited"
    assert "allows 50 rows" in batch["errors"]["data"][0]["message"]


async def test_rows_of_a_sheet_are_charged_too_and_what_makes_no_batch_costs_nothing(
    on: On, engine: AsyncEngine
) -> None:
    client = await on("rows")
    assert (await post_sheet(client, 6)).status_code == 202
    refused = await post_sheet(client, 3)
    assert (refused.status_code, code_of(refused)) == (429, "rate_limited")
    assert "8 batch rows per day" in refused.json()["detail"]
    assert int(refused.headers["retry-after"]) > 60
    assert "ratelimit" in refused.headers
    too_dear = await post_sheet(client, 2, max_cost_usd="0")
    assert code_of(too_dear) == "cost_cap_exceeded"
    assert (await post_sheet(client, 2)).status_code == 202
    assert (await post_sheet(client, 1)).status_code == 429
    assert len((await client.get("/v1/batches")).json()["data"]) == 2
    assert (await client.post("/v1/jobs", json={"prompt": "x"})).status_code == 202  # rows have a limit of their own


async def test_tokens_of_rows_are_charged(on: On) -> None:
    client = await on("wordy")  # a row: 2 bytes, 16 for a message, 128 for a request, 10 of answer
    assert code(await batch_of(client, 10)) is None
    batch = await batch_of(client, 10)
    assert code(batch) == "rate_limited"
    assert "2,000 batch tokens per day" in batch["errors"]["data"][0]["message"]
    assert code(await batch_of(client, 2)) is None


async def test_a_plan_by_the_minute_has_a_day_of_it_for_batches(app: FastAPI) -> None:
    plan = app.state.services.limiter.plan("minutes")
    assert [(limit.name, limit.quota) for limit in plan.batch_limits] == [("batch-rows-per-day", 1440)]


async def test_rows_of_unfinished_batches_are_limited_at_a_time(on: On, engine: AsyncEngine) -> None:
    client = await on("few")
    first = await batch_of(client, 3)
    assert code(first) is None
    assert code(await batch_of(client, 3)) == "rate_limited"
    refused = await post_sheet(client, 3)
    assert (refused.status_code, code_of(refused)) == (429, "rate_limited")
    assert "3 are under way" in refused.json()["detail"]
    ended = text("UPDATE batches SET status = 'cancelled' WHERE id = :id")
    await fetch_all(engine, ended, {"id": from_wire(BATCH, first["id"])})
    assert (await post_sheet(client, 3)).status_code == 202


async def test_rows_that_run_again_are_charged_again(on: On, engine: AsyncEngine) -> None:
    client = await on("rows")
    batch = await batch_of(client, 5)
    await client.post(f"/v1/batches/{batch['id']}/cancel")
    end = text("UPDATE batches SET status = 'cancelled', endings = '{cancelled}', cancelled_at = now() WHERE id = :id")
    await fetch_all(engine, end, {"id": from_wire(BATCH, batch["id"])})
    refused = await client.post(f"/v1/batches/{batch['id']}/retry")
    assert (refused.status_code, code_of(refused)) == (429, "rate_limited")
    assert (await client.get(f"/v1/batches/{batch['id']}")).json()["status"] == "cancelled"
    assert code(await batch_of(client, 3)) is None  # what was refused took nothing


async def test_files_are_limited_by_number_and_size_and_expire(on: On) -> None:
    client = await on("files")

    async def send(size: int) -> httpx.Response:
        files = {"file": ("rows.jsonl", b"x" * size)}
        return await client.post("/v1/files", files=files, data={"purpose": "batch"})

    first = await send(2000)
    assert first.json()["expires_at"] - first.json()["created_at"] == 7200
    refused = await send(1001)
    assert (refused.status_code, code_of(refused)) == (429, "rate_limited")
    assert refused.headers["x-should-retry"] == "false"
    assert "2 files and 3,000 bytes" in refused.json()["detail"]
    assert (await send(1000)).status_code == 200
    assert (await send(1)).status_code == 429
    assert len((await client.get("/v1/files")).json()["data"]) == 2
    await client.delete(f"/v1/files/{first.json()['id']}")
    assert (await send(1)).status_code == 200


async def test_files_that_come_in_together_do_not_pass_together(on: On) -> None:
    client = await on("files")
    body = {"files": {"file": ("rows.jsonl", b"x" * 2000)}, "data": {"purpose": "batch"}}
    responses = await asyncio.gather(*(client.post("/v1/files", **body) for _ in range(4)))  # type: ignore[arg-type]
    stored = [entry["bytes"] for entry in (await client.get("/v1/files")).json()["data"]]
    assert {response.status_code for response in responses} <= {200, 429}
    assert 1 <= len(stored) <= 2


async def test_a_key_without_a_plan_asks_nobody(on: On, monkeypatch: pytest.MonkeyPatch, settings: ApiSettings) -> None:
    async def never(self: Counters, wanted: object) -> object:
        raise AssertionError("the counters were asked")

    monkeypatch.setattr(Counters, "count", never)
    client = await on(None)
    assert code(await batch_of(client, 20)) is None
    assert (await post_sheet(client, 20)).status_code == 202
    response = await client.post("/v1/files", files={"file": ("a", json.dumps({}).encode())}, data={"purpose": "batch"})
    assert (response.status_code, "ratelimit" in response.headers) == (200, False)
