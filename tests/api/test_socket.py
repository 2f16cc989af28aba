"""What only a real server and a real socket show: bodies cut off early, callers that hang up."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.api.acting import Tenant, new_tenant, until
from tests.stack import Stack

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def url(api_database_url: str, api_redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of an API process."""
    with Stack(api_database_url, api_redis_url, tmp_path_factory.mktemp("api")) as stack:
        yield stack.api()[1]


@pytest.fixture
async def tenant(engine: AsyncEngine) -> Tenant:
    return await new_tenant(engine)


@pytest.fixture
async def client(url: str, tenant: Tenant) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {tenant.key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
        yield client


async def talk(url: str, *chunks: bytes) -> bytes:
    """Send raw bytes and read until the first response is there."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()
        async with asyncio.timeout(10):
            return await reader.readuntil(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()


def head(tenant: Tenant, *headers: str) -> bytes:
    lines = [
        "POST /v1/jobs HTTP/1.1",
        "Host: headrace",
        f"Authorization: Bearer {tenant.key}",
        "Content-Type: application/json",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def test_a_declared_body_over_the_cap_is_refused_before_it_comes(url: str, tenant: Tenant) -> None:
    assert (await talk(url, head(tenant, "Content-Length: 99999999999"))).startswith(b"HTTP/1.1 413")


async def test_a_chunked_body_over_the_cap_is_refused_before_it_ends(url: str, tenant: Tenant) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    answer = await talk(url, head(tenant, "Transfer-Encoding: chunked"), *[chunk] * 70)
    assert answer.startswith(b"HTTP/1.1 413")


async def test_a_body_that_never_comes_leaves_the_api_working(
    url: str, tenant: Tenant, client: httpx.AsyncClient
) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await talk(url, head(tenant, "Content-Length: 100"), b'{"prompt"')
    assert (await client.post("/v1/jobs", json={"prompt": "x"})).status_code == 202


async def test_a_request_that_is_not_http_is_refused(url: str, client: httpx.AsyncClient) -> None:
    assert (await talk(url, b"\x16\x03\x01 hello\r\n\r\n")).startswith(b"HTTP/1.1 400")
    assert (await client.get("/livez")).status_code == 200


async def test_a_caller_that_hangs_up_waits_no_longer(client: httpx.AsyncClient) -> None:
    job = (await client.post("/v1/jobs", json={"prompt": "x"})).json()
    with pytest.raises(httpx.ReadTimeout):
        await client.get(job["status_url"], params={"wait": 60}, timeout=0.5)

    async def nobody_waits() -> bool:
        return "headrace_api_waiters 0.0" in (await client.get("/metrics")).text

    await until(nobody_waits)


async def test_one_connection_serves_many_requests(client: httpx.AsyncClient) -> None:
    for status, content in ((422, b"{"), (202, b'{"prompt": "x"}'), (415, b""), (202, b'{"prompt": "x"}')):
        kind = "application/json" if content else "text/plain"
        response = await client.post("/v1/jobs", content=content, headers={"content-type": kind})
        assert response.status_code == status


async def test_a_burst_of_submissions_is_recorded_whole(client: httpx.AsyncClient) -> None:
    posts = [client.post("/v1/jobs", json={"prompt": str(n)}) for n in range(200)]
    responses = await asyncio.gather(*posts)
    assert {response.status_code for response in responses} == {202}
    ids = {response.json()["id"] for response in responses}
    listed: set[str] = set()
    after: dict[str, str] = {}
    while len(listed) < 200:
        page = (await client.get("/v1/jobs", params={"limit": 100, **after})).json()
        listed |= {job["id"] for job in page["data"]}
        after = {"after": page["last_id"]}
    assert listed == ids
