"""Files: uploaded in pieces, listed, read, deleted; nothing is left of an upload that is broken off."""

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.filestore import Upload
from api.settings import ApiSettings
from models.database import fetch_all, fetch_one
from models.file import CHUNK_BYTES
from models.ids import new_id
from models.wakeups import Wakeups
from tests.api.acting import Json, Tenant, code_of
from workers.maintenance import Maintenance

pytestmark = pytest.mark.anyio

NOBODYS_FILE = "file-01a1fcbec45f76958cf469824f9538bf"
BOUNDARY = "multipart/form-data; boundary=x"


@pytest.fixture
def settings(settings: ApiSettings) -> ApiSettings:
    """Uploads of a megabyte."""
    return settings.model_copy(update={"max_upload_mb": 3})


async def upload(client: httpx.AsyncClient, content: bytes = b"{}\n", **fields: str) -> httpx.Response:
    form = {"purpose": "batch"} | fields
    return await client.post("/v1/files", files={"file": ("rows.jsonl", content)}, data=form)


async def test_a_file_comes_back_as_it_was(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    content = bytes(range(256)) * 9000
    response = await upload(client, content)
    file = response.json()
    assert response.status_code == 200
    assert (file["object"], file["bytes"], file["filename"]) == ("file", len(content), "rows.jsonl")
    assert (file["purpose"], file["status"], file["expires_at"]) == ("batch", "processed", None)
    assert (await client.get(f"/v1/files/{file['id']}")).json() == file
    read = await client.get(f"/v1/files/{file['id']}/content")
    assert read.content == content
    assert read.headers["content-length"] == str(len(content))
    sizes = "SELECT max(length(data)) AS most, count(*) AS chunks FROM file_chunks WHERE file_id = :id"
    stored = await fetch_one(engine, text(sizes), {"id": file["id"].removeprefix("file-")})
    assert stored is not None
    assert dict(stored) == {"most": CHUNK_BYTES, "chunks": 3}


async def test_an_empty_file_is_a_file(client: httpx.AsyncClient) -> None:
    file = (await upload(client, b"")).json()
    assert file["bytes"] == 0
    assert (await client.get(f"/v1/files/{file['id']}/content")).content == b""


async def test_files_are_listed_in_pages_of_either_order(client: httpx.AsyncClient) -> None:
    ids = [(await upload(client)).json()["id"] for _ in range(3)]
    first = (await client.get("/v1/files?limit=2")).json()
    assert [file["id"] for file in first["data"]] == [ids[2], ids[1]]
    assert (first["first_id"], first["last_id"], first["has_more"]) == (ids[2], ids[1], True)
    second = (await client.get(f"/v1/files?limit=2&after={ids[1]}")).json()
    assert ([file["id"] for file in second["data"]], second["has_more"]) == ([ids[0]], False)
    oldest = (await client.get(f"/v1/files?order=asc&purpose=batch&after={ids[0]}")).json()
    assert [file["id"] for file in oldest["data"]] == ids[1:]
    assert (await client.get("/v1/files?purpose=batch_output")).json()["data"] == []
    assert code_of(await client.get("/v1/files?after=batch_1")) == "validation_failed"


async def sweep(engine: AsyncEngine, settings: ApiSettings) -> None:
    """Delete what is to be deleted, as a relay does."""
    wakeups = Wakeups(settings.redis_url)
    await Maintenance(engine, engine, wakeups, writer=new_id(), free=()).sweep_files()
    await wakeups.close()


async def test_a_deleted_file_is_gone(client: httpx.AsyncClient, engine: AsyncEngine, settings: ApiSettings) -> None:
    file_id = (await upload(client)).json()["id"]
    assert (await client.delete(f"/v1/files/{file_id}")).json() == {"id": file_id, "object": "file", "deleted": True}
    assert code_of(await client.get(f"/v1/files/{file_id}")) == "not_found"
    assert code_of(await client.delete(f"/v1/files/{file_id}")) == "not_found"
    await sweep(engine, settings)
    left = "SELECT FROM file_chunks WHERE file_id = :id"
    assert not await fetch_all(engine, text(left), {"id": file_id.removeprefix("file-")})


async def test_another_tenants_file_does_not_exist(client: httpx.AsyncClient, stranger: httpx.AsyncClient) -> None:
    file_id = (await upload(client)).json()["id"]
    for answer in (
        await stranger.get(f"/v1/files/{file_id}"),
        await stranger.get(f"/v1/files/{file_id}/content"),
        await stranger.delete(f"/v1/files/{file_id}"),
        await client.get(f"/v1/files/{NOBODYS_FILE}"),
        await client.get("/v1/files/file_01a1fcbec45f76958cf469824f9538bf"),
    ):
        assert (answer.status_code, code_of(answer)) == (404, "not_found")
    assert (await stranger.get("/v1/files")).json()["data"] == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "fine-tune"}, "purpose"),
        ({"color": "red"}, "color"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "59"}, "expires_after[seconds]"),
        ({"expires_after[anchor]": "last_active_at", "expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        ({"expires_after[seconds]": "3600"}, "expires_after[anchor]"),
    ],
)
async def test_fields_that_are_wrong_are_named_and_nothing_is_stored(
    client: httpx.AsyncClient, engine: AsyncEngine, tenant: Tenant, fields: Json, param: str
) -> None:
    response = await upload(client, b"x" * 2_000_000, **fields)
    assert (response.status_code, code_of(response)) == (422, "validation_failed")
    assert response.json()["error"]["param"] == param
    assert await stored(engine, tenant) == 0


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("multipart/form-data", b"--x--", 415),
        (BOUNDARY, b"", 422),
        (BOUNDARY, b"no form", 422),
        (BOUNDARY, b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"cut" * 500_000, 422),
        (BOUNDARY, b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--\r\n', 422),
        (BOUNDARY, b"--x\r\nContent-Disposition: form-data\r\n\r\nbatch\r\n--x--\r\n", 422),
        (BOUNDARY, b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n\xff\r\n--x--\r\n', 422),
        (BOUNDARY, b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\nx\r\n--x--\r\n', 422),
        (BOUNDARY, b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * (4 << 20), 413),
        (BOUNDARY, b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + b"x" * (2 << 20), 413),
    ],
)
async def test_what_is_no_upload_is_refused_and_leaves_nothing(
    client: httpx.AsyncClient, engine: AsyncEngine, tenant: Tenant, content_type: str, body: bytes, status: int
) -> None:
    response = await client.post("/v1/files", content=body, headers={"content-type": content_type})
    assert response.status_code == status, response.text
    code_of(response)
    assert await stored(engine, tenant) == 0


async def test_a_body_that_never_says_its_size_is_cut_off_at_the_limit(
    client: httpx.AsyncClient, engine: AsyncEngine, tenant: Tenant
) -> None:
    async def endless() -> object:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(100):
            yield b"x" * 100_000

    response = await client.post("/v1/files", content=endless(), headers={"content-type": BOUNDARY})  # type: ignore[arg-type]  # an async generator
    assert (response.status_code, code_of(response)) == (413, "payload_too_large")
    assert await stored(engine, tenant) == 0


async def test_what_is_expired_or_was_left_behind_is_unseen_and_then_swept_away(
    client: httpx.AsyncClient, engine: AsyncEngine, tenant: Tenant, settings: ApiSettings
) -> None:
    an_hour = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    kept = (await upload(client, b"{}", **an_hour)).json()
    assert kept["expires_at"] == kept["created_at"] + 3600
    expired = (await upload(client)).json()["id"]
    unfinished = Upload(engine)
    await unfinished.begin(tenant.id, "half.jsonl", "batch")
    await unfinished.write(b"x" * 2_000_000)
    assert [file["id"] for file in (await client.get("/v1/files")).json()["data"]] == [expired, kept["id"]]
    late = "UPDATE files SET expires_at = now() - interval '1 second' WHERE id = ANY(CAST(:ids AS uuid[]))"
    await fetch_all(engine, text(late), {"ids": [expired.removeprefix("file-"), str(unfinished.id)]})
    assert code_of(await client.get(f"/v1/files/{expired}/content")) == "not_found"
    await sweep(engine, settings)
    assert await stored(engine, tenant) == 1
    left = text("SELECT count(*) AS n FROM file_chunks WHERE file_id = :id")
    for file_id in (expired.removeprefix("file-"), str(unfinished.id)):
        chunks = await fetch_one(engine, left, {"id": file_id})
        assert chunks is not None
        assert chunks["n"] == 0


async def stored(engine: AsyncEngine, tenant: Tenant) -> int:
    """How many files of a tenant, finished or not, there are that are not being deleted."""
    row = await fetch_one(
        engine, text("SELECT count(*) AS n FROM files WHERE tenant_id = :id AND bytes > -2"), {"id": tenant.id}
    )
    assert row is not None
    return int(row["n"])
