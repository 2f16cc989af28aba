"""What is refused before any handler, by the table of docs/refusals.md: each request with its answer."""

import httpx
import pytest

from api.hints import FOREIGN, MOST_CHARACTERS
from tests.api.acting import code_of
from tests.api.refusals import DOCUMENT, ROWS, Row, document, foreign, known_paths

pytestmark = pytest.mark.anyio


async def send(client: httpx.AsyncClient, row: Row) -> httpx.Response:
    method, _, path = row.request.partition(" ")
    headers = dict(row.headers)
    if row.authorization is not None:
        headers["authorization"] = row.authorization
    return await client.request(method, path, headers=headers, content=row.content)


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.what}: {row.request}" for row in ROWS])
async def test_a_refusal_says_what_to_send_instead(client: httpx.AsyncClient, row: Row) -> None:
    response = await send(client, row)
    assert (response.status_code, code_of(response), response.json()["detail"]) == (row.status, row.code, row.says)
    assert "hr_a" not in response.text


async def test_an_endpoint_of_others_is_known_as_theirs(client: httpx.AsyncClient) -> None:
    for row, each in zip(foreign(known_paths()), FOREIGN, strict=True):
        response = await send(client, row)
        assert (response.status_code, code_of(response)) == (404, "not_found"), row.request
        assert response.json()["detail"].endswith(f"a path of {each.of}. {each.instead}."), row.request


def test_the_document_is_made_from_the_table() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document()


@pytest.mark.parametrize("path", ["/v1/models/" + "::" * 30_000 + "/x", "/a" * 30_000, "/%00%0a", "/..//../v1"])
async def test_a_hostile_path_costs_nothing_and_is_told_shortly(client: httpx.AsyncClient, path: str) -> None:
    if path.startswith("/v1/models/"):
        path = path.replace("/v1/", "/v2/")
    response = await client.get(path)
    assert (response.status_code, code_of(response)) == (404, "not_found")
    assert len(response.content) < 2 * MOST_CHARACTERS + 500


@pytest.mark.parametrize("path", ["/livez", "/v1/models", "/v1/models/tiny", "/openapi.json", "/v1/jobs"])
async def test_head_is_get_without_the_body(client: httpx.AsyncClient, path: str) -> None:
    head, get = await client.head(path), await client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.content))


async def test_head_of_what_is_not_there_or_not_allowed(client: httpx.AsyncClient) -> None:
    for path, status in (("/nothing", 404), ("/v1/chat/completions", 405)):
        response = await client.head(path)
        assert (response.status_code, response.content) == (status, b"")


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/chat/completions", {"POST"}),
        ("/v1/jobs", {"GET", "HEAD", "POST"}),
        ("/v1/files/file-0198c0ffee0070008000000000000000", {"GET", "HEAD", "DELETE"}),
        ("/v1/budgets", {"GET", "HEAD", "PUT"}),
    ],
)
async def test_options_tells_the_methods_of_a_path_and_lets_no_page_call_it(
    client: httpx.AsyncClient, path: str, methods: set[str]
) -> None:
    headers = {"origin": "https://example.org", "access-control-request-method": "POST"}
    response = await client.options(path, headers=headers)
    assert (response.status_code, response.content) == (204, b"")
    assert set(response.headers["allow"].split(", ")) == methods | {"OPTIONS"}
    assert not [name for name in response.headers if name.startswith("access-control-")]
    refused = await client.patch(path)
    assert set(refused.headers["allow"].split(", ")) == methods | {"OPTIONS"}
