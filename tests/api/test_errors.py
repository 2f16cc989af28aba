"""Errors that no handler makes: unknown paths, wrong methods, failures of Postgres, and what nobody foresaw."""

import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import Request
from starlette.responses import Response
from structlog.testing import capture_logs

from api.pools import split
from api.settings import ApiSettings
from models.database import fetch_all
from tests.api.acting import code_of, submit

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("path", ["/nothing", "/v1/nothing", "/v1/jobs/", "/status/", "/docs/assets/nothing.js"])
async def test_an_unknown_path_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert (response.status_code, code_of(response)) == (404, "not_found")


async def test_a_wrong_method_is_told_the_right_ones(client: httpx.AsyncClient) -> None:
    response = await client.put("/v1/jobs", json={})
    assert (response.status_code, code_of(response)) == (405, "method_not_allowed")
    assert "POST" in response.headers["allow"]


async def test_an_unforeseen_failure_says_nothing_of_itself(app: FastAPI, client: httpx.AsyncClient) -> None:
    async def fail(request: Request) -> Response:
        raise RuntimeError("the secret is 42")

    app.add_route("/fail", fail)
    with capture_logs() as logs:
        response = await client.get("/fail")
    assert (response.status_code, code_of(response)) == (500, "internal")
    assert "42" not in response.text
    (event,) = logs
    assert (event["event"], event["path"]) == ("api.failed", "/fail")
    assert event["request_id"] == response.headers["x-request-id"]
    assert "42" in str(event["exc_info"])


async def test_every_response_has_its_own_request_id(client: httpx.AsyncClient) -> None:
    paths = ["/livez", "/v1/jobs", "/nothing", "/livez"]
    ids = [(await client.get(path)).headers["x-request-id"] for path in paths]
    assert len(set(ids)) == len(paths)
    assert all(request_id.startswith("req_") for request_id in ids)


@contextlib.asynccontextmanager
async def refusing(engine: AsyncEngine, sqlstate: str) -> AsyncIterator[None]:
    """Jobs of the user `refused` meet this error of Postgres."""
    body = f"BEGIN RAISE EXCEPTION 'as it is tested' USING ERRCODE = '{sqlstate}'; END"
    await fetch_all(engine, text(f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$"))
    trigger = "CREATE TRIGGER refuse BEFORE INSERT ON jobs FOR EACH ROW WHEN (NEW.end_user = 'refused')"
    await fetch_all(engine, text(f"{trigger} EXECUTE FUNCTION refuse()"))
    try:
        yield
    finally:
        await fetch_all(engine, text("DROP TRIGGER refuse ON jobs"))
        await fetch_all(engine, text("DROP FUNCTION refuse"))


@pytest.mark.parametrize(
    ("sqlstate", "said"),
    [
        ("53100", "out of space"),
        ("53200", "out of space"),
        ("57014", "took too long"),
        ("25006", "takes no writes"),
        ("55P03", "Another request"),
    ],
)
async def test_each_failure_of_postgres_is_told_as_what_it_is_and_records_nothing(
    client: httpx.AsyncClient, engine: AsyncEngine, sqlstate: str, said: str
) -> None:
    async with refusing(engine, sqlstate):
        response = await client.post("/v1/jobs", json={"prompt": "x", "user": "refused"})
        assert (await client.post("/v1/jobs", json={"prompt": "x"})).status_code == 202
    assert (response.status_code, code_of(response)) == (503, "unavailable")
    assert said in response.json()["detail"]
    assert response.json()["detail"].endswith("; nothing was recorded.")
    assert int(response.headers["retry-after"]) >= 1
    assert len((await client.get("/v1/jobs")).json()["data"]) == 1


async def test_a_failure_that_waiting_does_not_help_is_an_error_here(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    async with refusing(engine, "P0001"):
        response = await client.post("/v1/jobs", json={"prompt": "x", "user": "refused"})
    assert (response.status_code, code_of(response)) == (500, "internal")


@pytest.mark.parametrize("path", ["/v1/files?purpose=%00", "/v1/files?purpose=a%00b"])
async def test_a_value_that_cannot_be_stored_is_the_callers_mistake(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert (response.status_code, code_of(response)) == (422, "validation_failed")


@pytest.mark.parametrize(
    "statement",
    ["SELECT CAST(:value AS jsonb)", "SELECT CAST(CAST(:value AS jsonb) ->> 'n' AS int)"],
    ids=["U+0000", "out of range"],
)
async def test_a_value_that_no_check_foresaw_is_the_callers_mistake_too(
    app: FastAPI, client: httpx.AsyncClient, statement: str
) -> None:
    async def store(request: Request) -> Response:
        value = {"value": '{"n": 99999999999999, "text": "\\u0000"}'}
        if "->>" in statement:
            value = {"value": '{"n": 99999999999999}'}
        await fetch_all(app.state.services.pools.light, text(statement), value)
        return Response()

    app.add_route("/store", store)
    response = await client.get("/store")
    assert (response.status_code, code_of(response)) == (422, "validation_failed")


async def test_a_pool_that_is_busy_is_not_a_postgres_that_is_away(
    app: FastAPI, client: httpx.AsyncClient, settings: ApiSettings
) -> None:
    await submit(client)
    async with contextlib.AsyncExitStack() as held:
        for _ in range(split(settings.api_pool_size)["submit"]):
            await held.enter_async_context(app.state.services.pools.submit.connect())
        response = await client.post("/v1/jobs", json={"prompt": "x"})
    assert (response.status_code, code_of(response)) == (503, "unavailable")
    assert "busy" in response.json()["detail"]
    assert "cannot be reached" not in response.json()["detail"]
    assert (await client.post("/v1/jobs", json={"prompt": "x"})).status_code == 202
