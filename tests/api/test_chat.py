"""What a client of chat completions gets: usage with its details, lines that nobody splits, signs of life, errors."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from openai._streaming import SSEDecoder

from api.settings import ApiSettings
from tests.api.acting import Json, Tenant, Worker, code_of, until
from tests.api.chats import CHAT, Reading, asking, body, speaking

pytestmark = pytest.mark.anyio

DETAILS: Any = {
    "cached_input_tokens": 80,
    "reasoning_tokens": 4,
    "input_tokens": 100,
    "output_tokens": 9,
}  # Any: columns
USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 9,
    "total_tokens": 109,
    "prompt_tokens_details": {"cached_tokens": 80},
    "completion_tokens_details": {"reasoning_tokens": 4},
}
SEPARATED = "a\x85b\u2028c\u2029d\x0be\x0cf\rg\x1ch\x1di\x1ej\nk"


@pytest.fixture
def heartbeat_s() -> float:
    """Seconds of silence before a heartbeat."""
    return 0.1


@pytest.fixture
def settings(settings: ApiSettings, heartbeat_s: float) -> ApiSettings:
    return settings.model_copy(update={"stream_heartbeat_s": heartbeat_s})


async def test_a_completion_says_what_it_used_in_detail_over_all_its_attempts(
    app: FastAPI, tenant: Tenant, client: httpx.AsyncClient, worker: Worker
) -> None:
    """BerriAI/litellm#36168: cached tokens that the answer does not tell are priced in full."""
    async with asking(app, tenant, client) as reading:
        await worker.finish(await worker.claim(reading.job), "queued", **DETAILS)
        await worker.finish(await worker.claim(reading.job), **DETAILS)
        worker.announce(reading.job)
        await reading.until_ended()
    answer = json.loads(reading.content)
    assert (reading.status, answer["choices"][0]["message"]["content"]) == (200, "Hello.")
    assert answer["usage"] == {
        "prompt_tokens": 200,
        "completion_tokens": 18,
        "total_tokens": 218,
        "prompt_tokens_details": {"cached_tokens": 160},
        "completion_tokens_details": {"reasoning_tokens": 8},
    }
    job = (await client.get(reading.job["status_url"])).json()
    assert job["usage"] == {
        "input_tokens": 200,
        "output_tokens": 18,
        "total_tokens": 218,
        "input_tokens_details": {"cached_tokens": 160},
        "output_tokens_details": {"reasoning_tokens": 8},
    }


async def test_details_are_there_also_when_they_are_zero(
    app: FastAPI, tenant: Tenant, client: httpx.AsyncClient, worker: Worker
) -> None:
    """BerriAI/litellm#36882: 0 is a count, and must not be left out as if it were none."""
    async with asking(app, tenant, client) as reading:
        await worker.complete(reading.job)
        await reading.until_ended()
    usage = json.loads(reading.content)["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}


async def test_the_last_chunk_of_a_stream_says_the_same_as_the_whole_answer(
    app: FastAPI, tenant: Tenant, client: httpx.AsyncClient, worker: Worker, api_redis_url: str
) -> None:
    """AntonioAEMartins/claude-code-proxy#20: usage comes in a chunk of its own, before ``[DONE]``."""
    options = {"include_usage": True}
    async with asking(app, tenant, client, stream=True, stream_options=options) as reading:
        async with speaking(worker, api_redis_url, reading.job) as speaker:
            await speaker.end(reading.job, "Hello.", **DETAILS)
        await reading.until_ended()
    *before, last = reading.chunks()
    assert (last["choices"], last["usage"]) == ([], USAGE)
    assert all(chunk["usage"] is None for chunk in before)
    assert reading.content.endswith(b"\n\ndata: [DONE]\n\n")


async def test_a_stream_without_include_usage_has_no_usage(
    app: FastAPI, tenant: Tenant, client: httpx.AsyncClient, worker: Worker, api_redis_url: str
) -> None:
    async with asking(app, tenant, client, stream=True) as reading:
        async with speaking(worker, api_redis_url, reading.job) as speaker:
            await speaker.end(reading.job, "Hello.", **DETAILS)
        await reading.until_ended()
    assert all("usage" not in chunk and chunk["choices"] for chunk in reading.chunks())


def by_client(content: bytes) -> list[str]:
    """The official client's own decoder."""
    return [event.data for event in SSEDecoder().iter_bytes(iter([content]))]


def by_splitlines(content: bytes) -> list[str]:
    """``str.splitlines``, as httpx's iter_lines does: langgenius/dify#39008, Soju06/codex-lb#1010."""
    return [line[6:] for line in content.decode().splitlines() if line.startswith("data: ")]


def by_blocks(content: bytes) -> list[str]:
    """What is split at empty lines and begins with ``data:``, as pages of JavaScript often do."""
    return [block[6:] for block in content.decode().split("\n\n") if block.startswith("data: ")]


def by_empty_lines(content: bytes) -> list[str]:
    """Each empty line ends an event, also one without data: openai-go before its pull request 621."""
    events, data = [], ""
    for line in content.decode().split("\n"):
        if line.startswith("data: "):
            data += line[6:]
        elif not line:
            events.append(data)
            data = ""
    return events[:-1]  # what follows the last line feed


READERS = (by_client, by_splitlines, by_blocks, by_empty_lines)


@pytest.mark.parametrize("read", READERS)
async def test_every_kind_of_reader_reads_the_same_text_with_pauses_and_separators_in_it(
    app: FastAPI,
    tenant: Tenant,
    client: httpx.AsyncClient,
    worker: Worker,
    api_redis_url: str,
    read: Callable[[bytes], list[str]],
) -> None:
    """theopenco/llmgateway#2334, openai/openai-go#621 (comments), modelcontextprotocol/typescript-sdk#1926 (U+2028)."""
    async with asking(app, tenant, client, stream=True) as reading:
        async with speaking(worker, api_redis_url, reading.job) as speaker:
            await reading.until(b": keep-alive\n")
            assert b"data" not in reading.content
            speaker.say("one ")
            await reading.until(b"one ")
            await reading.until(b"\n\n: keep-alive\n")
            speaker.say(SEPARATED)
            await speaker.end(reading.job, f"one {SEPARATED}")
        await reading.until_ended()
    *chunks, done = read(reading.content)
    said = [json.loads(chunk)["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert ("".join(said), done) == (f"one {SEPARATED}", "[DONE]")
    assert json.loads(chunks[-1])["choices"][0]["finish_reason"] == "stop"


async def test_a_silent_stream_sends_its_head_and_comments(
    app: FastAPI, tenant: Tenant, client: httpx.AsyncClient
) -> None:
    """BerriAI/litellm#34819: without a byte for 60 s, load balancers take a healthy stream for dead."""
    async with asking(app, tenant, client, stream=True) as reading:
        await reading.until(b": keep-alive\n: keep-alive\n")
        assert (reading.status, reading.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert reading.headers["x-accel-buffering"] == "no"
        assert "no-cache" in reading.headers["cache-control"]
        assert reading.headers["x-headrace-job-id"] == reading.job["id"]


async def test_hanging_up_on_a_silent_stream_cancels_its_job(
    app: FastAPI, tenant: Tenant, client: httpx.AsyncClient
) -> None:
    async with asking(app, tenant, client, stream=True) as reading:
        await reading.until(b": keep-alive\n")
        reading.hang_up()
        await until(lambda: _is(client, reading, "cancelled"))


async def test_a_failure_after_a_heartbeat_is_an_event_of_openais_form(
    app: FastAPI, tenant: Tenant, client: httpx.AsyncClient, worker: Worker
) -> None:
    """BerriAI/litellm-docs#929: what fails after the first sign of life arrives under a 200; the client must raise."""
    error = {"code": "overloaded", "message": "try later", "retryable": True}
    async with asking(app, tenant, client, stream=True) as reading:
        await reading.until(b": keep-alive\n")
        await worker.finish(await worker.claim(reading.job), "failed", error=error)
        worker.announce(reading.job)
        await reading.until_ended()
    (event,) = reading.chunks()
    assert event == {"error": {"message": "try later", "type": "server_error", "code": "overloaded", "param": None}}
    assert b"[DONE]" not in reading.content


@pytest.mark.parametrize("heartbeat_s", [60])
async def test_a_failure_before_the_first_heartbeat_has_its_own_status(
    app: FastAPI, tenant: Tenant, client: httpx.AsyncClient, worker: Worker
) -> None:
    error = {"code": "overloaded", "message": "try later", "retryable": True}
    async with asking(app, tenant, client, stream=True) as reading:
        await worker.finish(await worker.claim(reading.job), "failed", error=error)
        worker.announce(reading.job)
        await reading.until_ended()
    assert (reading.status, json.loads(reading.content)["error"]["code"]) == (503, "overloaded")
    assert reading.headers["x-should-retry"] == "false"


async def test_a_wait_that_is_over_after_heartbeats_is_an_event_that_names_the_job(
    app: FastAPI, tenant: Tenant, client: httpx.AsyncClient
) -> None:
    async with asking(app, tenant, client, stream=True, headers={"prefer": "wait=1"}) as reading:
        await reading.until_ended()
    assert reading.headers["preference-applied"] == "wait=1"
    (event,) = reading.chunks()
    assert event["error"]["code"] == "wait_timeout"
    assert reading.job["id"] in event["error"]["message"]
    assert await _is(client, reading, "queued")


@pytest.mark.parametrize("heartbeat_s", [0])
async def test_without_heartbeats_nothing_is_sent_until_there_is_text(
    app: FastAPI, tenant: Tenant, client: httpx.AsyncClient
) -> None:
    async with asking(app, tenant, client, stream=True, headers={"prefer": "wait=1"}) as reading:
        await reading.until_ended()
    assert (reading.status, json.loads(reading.content)["code"]) == (504, "wait_timeout")


async def test_a_caller_behind_a_proxy_waits_in_pieces_for_one_job(
    app: FastAPI, tenant: Tenant, client: httpx.AsyncClient, worker: Worker
) -> None:
    """A plain request cannot be kept alive: with a key and a wait shorter than the proxy's, it is sent again."""
    headers = {"prefer": "wait=1", "idempotency-key": "once"}
    first = await client.post(CHAT, json=body(), headers=headers)
    assert (first.status_code, code_of(first)) == (504, "wait_timeout")
    assert (first.headers["x-should-retry"], first.headers["retry-after"]) == ("true", "1")
    job = (await client.get(first.headers["location"])).json()
    await worker.complete(job)
    again = await client.post(CHAT, json=body(), headers=headers)
    assert (again.status_code, again.headers["x-headrace-job-id"]) == (200, job["id"])
    assert len((await client.get("/v1/jobs")).json()["data"]) == 1


async def test_without_a_key_a_wait_that_is_over_is_not_to_be_sent_again(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=body(), headers={"prefer": "wait=1"})
    assert (response.status_code, code_of(response)) == (504, "wait_timeout")
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(("headers", "status"), [({}, "cancelled"), ({"idempotency-key": "k"}, "queued")])
async def test_hanging_up_cancels_the_job_unless_its_request_can_be_sent_again(
    app: FastAPI, tenant: Tenant, client: httpx.AsyncClient, headers: Json, status: str
) -> None:
    async with asking(app, tenant, client, headers=headers) as reading:
        reading.hang_up()
    assert await _is(client, reading, status)


async def test_postgres_going_away_after_a_heartbeat_is_an_event(
    app: FastAPI, tenant: Tenant, client: httpx.AsyncClient, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asking(app, tenant, client, stream=True) as reading:
        await reading.until(b": keep-alive\n")

        async def away(*_: object) -> None:
            raise ConnectionRefusedError

        with monkeypatch.context() as patched:
            patched.setattr("api.jobaccess.read_one", away)
            worker.announce(reading.job)
            await reading.until_ended()
    (event,) = reading.chunks()
    assert (event["error"]["code"], event["error"]["type"]) == ("unavailable", "server_error")
    assert await _is(client, reading, "queued")


async def _is(client: httpx.AsyncClient, reading: Reading, status: str) -> bool:
    found: Json = (await client.get(reading.job["status_url"])).json()
    return bool(found["status"] == status)
