"""Submitting: what is accepted, what is recorded, and what is refused with which code."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.auth import Caller
from api.schemas.requests import JobRequest
from api.submission import plan_job, request_hash
from models.catalog import load_catalog
from models.database import fetch_one
from models.errors import ContextLengthExceeded
from tests.api.acting import Json, Tenant, code_of, submit, uuid_of
from tests.api.conftest import CATALOG

pytestmark = pytest.mark.anyio

CALLER = Caller(UUID(int=1), UUID(int=2), frozenset())


def plan(**fields: Any) -> Json:  # Any: a request's fields
    return plan_job(JobRequest.model_validate({"prompt": "Hi"} | fields), CALLER, load_catalog(CATALOG), None)


async def stored(engine: AsyncEngine, job: Json) -> Json:
    row = await fetch_one(engine, text("SELECT * FROM jobs WHERE id = :id"), {"id": uuid_of(job)})
    assert row is not None
    return dict(row)


async def test_a_job_is_recorded_and_answered_with_its_resource(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/jobs", json={"prompt": "Say hello."})
    job = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == job["status_url"] == f"/status/{job['id']}"
    assert response.headers["retry-after"] == "1"
    assert job == (await client.get(response.headers["location"])).json()
    created = datetime.fromisoformat(job.pop("created_at"))
    assert datetime.fromisoformat(job.pop("expires_at")) - created == timedelta(days=1)
    routing = job.pop("routing")
    assert (routing["strategy"], routing["reason"]) == ("balanced", "the only LLM to choose from")
    assert [candidate["model"] for candidate in routing["candidates"]] == ["tiny"]
    assert job == {
        "id": job["id"],
        "object": "job",
        "kind": "generation",
        "status": "queued",
        "progress": 0.0,
        "status_url": job["status_url"],
        "model": "auto",
        "tier": "small",
        "queue": "small",
        "started_at": None,
        "finished_at": None,
        "next_attempt_at": None,
        "result": None,
        "error": None,
        "usage": None,
        "cost_usd": "0.000000",
        "attempts": [],
        "batch_id": None,
        "conversation_id": None,
        "user": None,
        "team": None,
        "metadata": {},
    }


async def test_every_field_reaches_postgres(client: httpx.AsyncClient, engine: AsyncEngine, tenant: Tenant) -> None:
    job = await submit(
        client,
        prompt=None,
        messages=[
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "Say "}, {"type": "text", "text": "hi \U0001f600"}],
            },
        ],
        model="large",
        max_tokens=5,
        temperature=0,
        top_p=0.5,
        top_k=7,
        min_p=0.25,
        frequency_penalty=-1.5,
        presence_penalty=0.5,
        stop="END",
        seed=-(2**63),
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        fallbacks=["wide"],
        priority="high",
        expires_in=60,
        max_cost_usd="0.5",
        user="ann",
        team="blue",
        metadata={"order": "42"},
    )
    row = await stored(engine, job)
    assert row["tenant_id"] == tenant.id
    assert row["request"] == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Say hi \U0001f600"},
        ],
        "max_tokens": 5,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.25,
        "frequency_penalty": -1.5,
        "presence_penalty": 0.5,
        "stop": ["END"],
        "seed": -(2**63),
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "object"}},
        },
    }
    assert (row["route"], row["tier"], row["queue"], row["priority"]) == (
        ["alone", "wide"],
        "large",
        "large",
        0,
    )
    assert row["expires_at"] - row["created_at"] == timedelta(seconds=60)
    assert (str(row["max_cost_usd"]), row["end_user"], row["team"]) == ("0.500000", "ann", "blue")
    assert job["metadata"] == row["labels"] == {"order": "42"}


def test_a_prompt_is_one_user_message_and_what_was_not_asked_for_is_not_stored() -> None:
    assert plan()["request"] == {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 256}


def test_fallbacks_are_the_catalogues_unless_given() -> None:
    assert plan(model="tiny")["route"] == ("tiny", "wide")
    assert plan(model="tiny", fallbacks=[])["route"] == ("tiny",)
    assert plan(model="tiny", fallbacks=["alone", "wide"])["route"] == ("tiny", "alone", "wide")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": None}, "body"),
        ({"messages": [{"role": "user", "content": "x"}]}, "body"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": 1}, "prompt"),
        ({"prompt": None, "messages": []}, "messages"),
        ({"prompt": None, "messages": [{"role": "user", "content": "x"}] * 2001}, "messages"),
        ({"prompt": None, "messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"prompt": None, "messages": [{"role": "user"}]}, "messages.0.content"),
        ({"prompt": None, "messages": [{"role": "user", "content": []}]}, "messages.0.content"),
        (
            {"prompt": None, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0.type",
        ),
        (
            {"prompt": None, "messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            "messages.0.content",
        ),
        ({"prompt": None, "messages": [{"role": "user", "content": "x", "colour": "y"}]}, "messages.0.colour"),
        ({"model": ""}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "12"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 10**39}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "text", "json_schema": {"name": "n"}}}, "response_format"),
        ({"fallbacks": "wide"}, "fallbacks"),
        ({"priority": "urgent"}, "priority"),
        ({"expires_in": 0}, "expires_in"),
        ({"expires_in": 30 * 86400 + 1}, "expires_in"),
        ({"max_cost_usd": "-1"}, "max_cost_usd"),
        ({"max_cost_usd": "lots"}, "max_cost_usd"),
        ({"max_cost_usd": "NaN"}, "max_cost_usd"),
        ({"max_cost_usd": "Infinity"}, "max_cost_usd"),
        ({"max_cost_usd": "0.0000001"}, "max_cost_usd"),
        ({"max_cost_usd": True}, "max_cost_usd"),
        ({"max_cost_usd": "1e999999999"}, "max_cost_usd"),
        ({"team": "x" * 257}, "team"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"metadata": {"": "v"}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"metadata": {str(n): "v" for n in range(17)}}, "metadata"),
        ({"conversation_id": "conv_1"}, "conversation_id"),
        ({"temprature": 1}, "temprature"),
    ],
)
async def test_a_wrong_field_is_named(client: httpx.AsyncClient, fields: Json, field: str) -> None:
    response = await client.post("/v1/jobs", json={"prompt": "x"} | fields)
    assert (response.status_code, code_of(response)) == (422, "validation_failed")
    assert [problem["field"] for problem in response.json()["errors"]] == [field]
    assert response.json()["error"]["param"] == field


async def test_each_wrong_field_has_its_entry(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/jobs", json={"prompt": "x", "seed": "a", "top_p": 3, "nonsense": 1})
    assert {problem["field"] for problem in response.json()["errors"]} == {"seed", "top_p", "nonsense"}


async def test_a_callback_url_is_refused_rather_than_forgotten(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/jobs", json={"prompt": "x", "callback_url": "https://example.org/hook"})
    assert (response.status_code, code_of(response)) == (422, "callback_url_refused")


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"model": "nobody"}, "model"), ({"fallbacks": ["nobody"]}, "fallbacks")],
)
async def test_an_unknown_model_is_not_found(client: httpx.AsyncClient, fields: Json, param: str) -> None:
    response = await client.post("/v1/jobs", json={"prompt": "x"} | fields)
    assert (response.status_code, code_of(response)) == (404, "model_not_found")
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "alone", "max_tokens": 1000},
        {"model": "alone", "max_tokens": 999, "prompt": "x" * 129},
        {"model": "tiny", "max_tokens": 8000},
    ],
)
async def test_what_fits_no_llm_of_the_route_is_refused(client: httpx.AsyncClient, fields: Json) -> None:
    response = await client.post("/v1/jobs", json={"prompt": "x"} | fields)
    assert (response.status_code, code_of(response)) == (422, "context_length_exceeded")


async def test_what_may_fit_a_fallback_is_accepted(client: httpx.AsyncClient) -> None:
    await submit(client, model="tiny", max_tokens=4000)


def test_a_job_that_may_be_adjusted_needs_room_for_its_prompt_alone() -> None:
    planned = plan(model="alone", max_tokens=5000, adjust=True)
    assert planned["request"]["adjust"] is True
    assert "adjust" not in plan(model="alone")["request"]
    with pytest.raises(ContextLengthExceeded):
        plan(model="alone", max_tokens=1, adjust=True, prompt="x" * 128_001)


def test_to_allow_adjustments_makes_another_request() -> None:
    """A repeated request without a change has the hash that it always had."""
    plain, adjusted = (JobRequest.model_validate({"prompt": "Hi", **more}) for more in ({}, {"adjust": True}))
    assert request_hash(plain) == request_hash(JobRequest.model_validate({"prompt": "Hi", "adjust": False}))
    assert request_hash(plain) != request_hash(adjusted)


async def test_a_worst_case_above_the_cap_is_refused(client: httpx.AsyncClient) -> None:
    # 1 byte + 16 for the message + 128 for the template, at 1 USD, and 256 tokens at 10 USD per million.
    worst = "0.002705"
    await submit(client, prompt="x", model="wide", max_cost_usd=worst)
    response = await client.post("/v1/jobs", json={"prompt": "x", "model": "wide", "max_cost_usd": "0.002704"})
    assert (response.status_code, code_of(response)) == (422, "cost_cap_exceeded")
    assert worst in response.json()["detail"]


async def test_the_cap_is_held_against_the_dearest_llm_of_the_route(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/jobs", json={"prompt": "x", "model": "tiny", "max_cost_usd": 0})
    assert code_of(response) == "cost_cap_exceeded"
    await submit(client, prompt="x", model="tiny", fallbacks=[], max_cost_usd=0)


def equivalents() -> Iterator[tuple[Json, Json]]:
    yield {"prompt": "x"}, {"prompt": "x", "max_tokens": 256, "priority": "normal"}
    yield {"prompt": "x", "stop": "a"}, {"stop": ["a"], "prompt": "x"}
    yield {"prompt": "x", "max_cost_usd": 0.5}, {"prompt": "x", "max_cost_usd": "0.5"}


@pytest.mark.parametrize(("one", "other"), list(equivalents()))
def test_requests_that_mean_the_same_have_the_same_hash(one: Json, other: Json) -> None:
    assert request_hash(JobRequest.model_validate(one)) == request_hash(JobRequest.model_validate(other))


def test_requests_that_differ_have_different_hashes() -> None:
    bodies: list[Json] = [
        {"prompt": "x"},
        {"prompt": "y"},
        {"messages": [{"role": "user", "content": "x"}]},
        {"prompt": "x", "fallbacks": []},
        {"prompt": "x", "metadata": {"a": "b"}},
    ]
    assert len({request_hash(JobRequest.model_validate(body)) for body in bodies}) == len(bodies)
