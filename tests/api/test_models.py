"""The models over HTTP: what exists, what is loaded where, and the shape that OpenAI's clients read."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from api.app import create_app
from api.settings import ApiSettings
from models.database import dump_json, fetch_all
from models.process import HEARTBEAT
from tests.api.acting import Tenant, Worker, code_of, serving

pytestmark = pytest.mark.anyio

REPORT = {
    "llm": "smollm2-135m",
    "since": "2026-11-21T08:00:00+00:00",
    "memory_bytes": 354_214_976,
    "quantization": "Q4_1",
    "jobs": 3,
    "tokens_per_s": 141.5,
}


@pytest.fixture
async def shipped(settings: ApiSettings, tenant: Tenant) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app with the shipped catalogue."""
    app = create_app(settings.model_copy(update={"catalog": None}))
    async with app.router.lifespan_context(app), serving(app, tenant) as client:
        yield client


async def report(engine: AsyncEngine, worker: Worker, models: list[dict[str, Any]] | None) -> None:
    params = {"id": worker.id, "lease_s": 600, "in_flight": 0, "waiting": []}
    await fetch_all(engine, HEARTBEAT, params | {"models": None if models is None else dump_json(models)})


async def test_every_llm_and_tier_is_listed_as_openais_clients_expect(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    for model in listed["data"]:
        assert isinstance(model["id"], str)
        assert (model["object"], type(model["created"]), type(model["owned_by"])) == ("model", int, str)
    assert {model["id"]: (model["kind"], model["owned_by"]) for model in listed["data"]} == {
        "tiny": ("llm", "mock"),
        "wide": ("llm", "mock"),
        "alone": ("llm", "mock"),
        "small": ("tier", "headrace"),
        "large": ("tier", "headrace"),
        "auto": ("auto", "headrace"),
    }
    choosers = {model["id"]: model["chooses_from"] for model in listed["data"] if model["kind"] != "llm"}
    assert choosers == {"small": ["tiny"], "large": ["wide", "alone"], "auto": ["tiny"]}
    for model in listed["data"]:
        assert (await client.get(f"/v1/models/{model['id']}")).json().keys() == model.keys()


async def test_a_model_shows_what_the_catalogue_says_of_it(client: httpx.AsyncClient) -> None:
    model = (await client.get("/v1/models/tiny")).json()
    assert {key: model[key] for key in ("tier", "provider", "context_window", "quality", "fallbacks", "loaded")} == {
        "tier": "small",
        "provider": "mock",
        "context_window": 1000,
        "quality": 0.5,
        "fallbacks": ["wide"],
        "loaded": None,
    }
    prices = {"input": "1.000000", "output": "10.000000", "cached_input": None}
    assert (await client.get("/v1/models/wide")).json()["prices"] == prices
    assert model["breaker"] in ("closed", None)
    assert set(model["measured"]) == {"tokens_per_s", "time_to_first_token_s", "latency_s", "error_rate"}


async def test_a_local_model_shows_what_is_loaded_of_it_and_no_worker_by_name(
    shipped: httpx.AsyncClient, engine: AsyncEngine, worker: Worker
) -> None:
    async def loaded() -> object:
        return (await shipped.get("/v1/models/smollm2-135m")).json()["loaded"]

    assert await loaded() == []
    await report(engine, worker, [REPORT])
    expected = [{key: value for key, value in REPORT.items() if key != "llm"}]
    assert await loaded() == expected
    await report(engine, worker, None)  # nothing has changed
    assert await loaded() == expected
    listed = (await shipped.get("/v1/models")).json()["data"]
    assert [model["loaded"] for model in listed if model["id"] == "smollm2-135m"] == [expected]
    assert "by hand" not in json.dumps(listed)
    await report(engine, worker, [])
    assert await loaded() == []


async def test_an_unknown_model_and_an_unknown_caller_are_refused(client: httpx.AsyncClient) -> None:
    for name in ("gpt-17", "a/b", "tiny%20"):
        response = await client.get(f"/v1/models/{name}")
        assert (response.status_code, code_of(response)) == (404, "model_not_found")
    nobody = {"authorization": "Bearer hr_wrong_key"}
    for path in ("/v1/models", "/v1/models/tiny"):
        assert (await client.get(path, headers=nobody)).status_code == 401
