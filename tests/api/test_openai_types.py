"""Every answer of the endpoints that are OpenAI's, by the types of the official client: strictly, and all fields.

Strict clients fail on what is left out: 64bit/async-openai#283 (details of usage), anomalyco/opencode#39606 and
aallam/openai-kotlin#205 (id, created, model), agentgateway/agentgateway#2371 (index), router-for-me/CLIProxyAPI#4498
(completion_tokens).
"""

import base64
import json
import struct

import httpx
import pytest
from fastapi import FastAPI
from openai.pagination import SyncCursorPage, SyncPage
from openai.types import Batch, CreateEmbeddingResponse, FileDeleted, FileObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, ValidationError

from models.catalog import load_catalog
from tests.api.acting import Tenant, Worker
from tests.api.chats import asking, speaking
from tests.api.conftest import CATALOG
from tests.api.test_openai_batches import create, line, upload
from tests.openai_types import check

pytestmark = pytest.mark.anyio


def test_the_check_finds_a_field_of_another_type_and_one_that_is_missing() -> None:
    model = {"id": "a", "created": 1, "object": "model", "owned_by": "b"}
    check(Model, model)
    with pytest.raises(ValidationError):
        check(Model, model | {"created": "1"})
    file = {"id": "a", "bytes": 1, "created_at": 1, "filename": "f", "object": "file", "purpose": "batch"}
    with pytest.raises(AssertionError, match="status_details"):
        check(FileObject, file | {"status": "processed", "expires_at": None})


async def test_a_chat_completion(app: FastAPI, tenant: Tenant, client: httpx.AsyncClient, worker: Worker) -> None:
    async with asking(app, tenant, client) as reading:
        await worker.complete(reading.job)
        await reading.until_ended()
    answer = json.loads(reading.content)
    check(ChatCompletion, answer)
    assert answer["id"] == f"chatcmpl-{reading.job['id'].removeprefix('job_')}"


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("reason", ["stop", "length"])
async def test_the_chunks_of_a_stream(
    app: FastAPI,
    tenant: Tenant,
    client: httpx.AsyncClient,
    worker: Worker,
    api_redis_url: str,
    reason: str,
    usage: bool,
) -> None:
    options = {"include_usage": True} if usage else None
    async with asking(app, tenant, client, stream=True, stream_options=options) as reading:
        async with speaking(worker, api_redis_url, reading.job) as speaker:
            speaker.say("one ")
            await reading.until(b"one ")
            await speaker.end(reading.job, "one two", reason)
        await reading.until_ended()
    chunks = reading.chunks()
    for chunk in chunks:
        check(ChatCompletionChunk, chunk)
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert [choice["index"] for choice in choices] == [0] * len(choices)
    assert choices[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert all("role" not in choice["delta"] for choice in choices[1:])
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + [reason]
    assert [chunk["usage"] is None for chunk in chunks if "usage" in chunk] == ([True] * 4 + [False]) * usage


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_embeddings(
    app: FastAPI, tenant: Tenant, client: httpx.AsyncClient, worker: Worker, encoding: str
) -> None:
    vectors = [[0.5, -0.25], [1.0, 0.0]]
    given = vectors if encoding == "float" else [base64.b64encode(struct.pack("<2f", *v)).decode() for v in vectors]
    async with asking(app, tenant, client) as reading:  # its kind does not matter to the answer
        result = {"embeddings": given, "model": "alone"}
        await worker.finish(await worker.claim(reading.job), result=result, output_tokens=0)
        worker.announce(reading.job)
        await reading.until_ended()
    answer = json.loads(reading.content)
    assert answer["usage"] == {"prompt_tokens": 12, "total_tokens": 12}
    assert [entry["index"] for entry in answer["data"]] == [0, 1]
    if encoding == "base64":  # the client decodes by itself before it makes the object
        for entry in answer["data"]:
            entry["embedding"] = list(struct.unpack("<2f", base64.b64decode(entry["embedding"])))
    assert [entry["embedding"] for entry in answer["data"]] == vectors
    check(CreateEmbeddingResponse, answer)


async def test_files(client: httpx.AsyncClient) -> None:
    file_id = await upload(client, [line("a")])
    check(FileObject, (await client.get(f"/v1/files/{file_id}")).json())
    listed = (await client.get("/v1/files")).json()
    check(SyncCursorPage[FileObject], listed)
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == (file_id, file_id, False)
    check(FileDeleted, (await client.delete(f"/v1/files/{file_id}")).json())
    empty = (await client.get("/v1/files")).json()
    assert empty == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


async def test_batches(client: httpx.AsyncClient) -> None:
    file_id = await upload(client, [line("a")])
    batch = (await create(client, file_id)).json()
    check(Batch, batch)
    failed = (await create(client, await upload(client, [line("a"), line("a")]))).json()
    assert failed["status"] == "failed"
    check(Batch, failed)
    assert {"code", "message", "param", "line"} == set(failed["errors"]["data"][0])
    check(Batch, (await client.post(f"/v1/batches/{batch['id']}/cancel")).json())
    listed = (await client.get("/v1/batches")).json()
    check(SyncCursorPage[Batch], listed)
    assert (listed["first_id"], listed["last_id"]) == (failed["id"], batch["id"])


async def test_models(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    check(SyncPage[Model], listed)
    assert {"auto", *load_catalog(CATALOG).llms} <= {model["id"] for model in listed["data"]}
    assert (listed["first_id"], listed["has_more"]) == (listed["data"][0]["id"], False)
    check(Model, (await client.get("/v1/models/auto")).json())


class Error(BaseModel):
    """What every client reads of an error; ``code`` may be a number elsewhere, and is a string here."""

    message: str
    type: str
    param: str | None
    code: str


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1/models/none", "/v1/batches/none", "/v1/files/none", "/v1/jobs?limit=0"]
)
async def test_errors(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert response.is_client_error
    check(Error, response.json()["error"])
