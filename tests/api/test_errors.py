"""Errors that no handler makes: unknown paths, wrong methods, and what nobody foresaw."""

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from structlog.testing import capture_logs

from tests.api.acting import code_of

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
