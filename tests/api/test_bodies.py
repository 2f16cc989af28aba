"""Hostile bodies: a clear 4xx, never a 500, and never a long wait."""

import contextlib
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.bodies import MAX_DEPTH, is_deeper_than, parse_json_object
from api.schemas.requests import JobRequest
from models.errors import ValidationFailed
from tests.api.acting import code_of

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}

MALFORMED = {
    "empty": b"",
    "blank": b" \n\t ",
    "not JSON": b"prompt=x",
    "cut short": b'{"prompt": "x"',
    "two documents": b'{"prompt": "x"} {}',
    "a byte order mark alone": b"\xef\xbb\xbf",
    "a byte order mark twice": b'\xef\xbb\xbf\xef\xbb\xbf{"prompt": "x"}',
    "UTF-16": '{"prompt": "x"}'.encode("utf-16"),
    "bad UTF-8": b'{"prompt": "\xff"}',
    "surrogate in UTF-8": b'{"prompt": "\xed\xa0\x80"}',
    "lone surrogate": b'{"prompt": "\\ud800"}',
    "lone surrogate in a key": b'{"prompt": "x", "metadata": {"\\udfff": "v"}}',
    "swapped surrogates": b'{"prompt": "\\udc00\\ud800"}',
    "NUL": b'{"prompt": "a\\u0000b"}',
    "NUL in a key": b'{"prompt": "x", "metadata": {"\\u0000": "v"}}',
    "raw NUL": b'{"prompt": "a\x00b"}',
    "NaN": b'{"prompt": "x", "temperature": NaN}',
    "Infinity": b'{"prompt": "x", "temperature": -Infinity}',
    "an infinite number": b'{"prompt": "x", "temperature": 1e999}',
    "a huge integer": b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
    "duplicate keys": b'{"prompt": "x", "prompt": "y"}',
    "duplicate keys inside": b'{"prompt": "x", "metadata": {"a": "1", "\\u0061": "2"}}',
    "many keys": b"{" + b",".join(b'"k%d": 1' % n for n in range(1001)) + b"}",
    "array": b"[]",
    "string": b'"prompt"',
    "number": b"1",
    "null": b"null",
    "deep arrays": b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "deep objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "deep and open": b"[" * 60000,
    "deep behind a quote": b'{"a": "' + b'[" ' * 20000,
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_malformed_body_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post("/v1/jobs", content=body, headers=JSON)
    assert (response.status_code, code_of(response)) == (422, "validation_failed")
    assert response.json()["errors"][0]["field"] == "body"


async def test_a_byte_order_mark_before_a_body_is_passed_over(client: httpx.AsyncClient) -> None:
    """Editors of Windows and PowerShell begin files with it, which people then post."""
    response = await client.post("/v1/jobs", content=b'\xef\xbb\xbf{"prompt": "x"}', headers=JSON)
    assert response.status_code == 202


async def test_an_escaped_backslash_before_u0000_is_text(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/jobs", content=b'{"prompt": "C:\\\\u0000"}', headers=JSON)
    assert response.status_code == 202


async def test_a_pair_of_surrogates_is_a_character(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/jobs", content=b'{"prompt": "\\ud83d\\ude00"}', headers=JSON)
    assert response.status_code == 202


async def test_a_body_over_the_cap_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/jobs", json={"prompt": "x" * 65536})
    assert (response.status_code, code_of(response)) == (413, "payload_too_large")


async def test_a_chunked_body_is_capped_while_it_streams(client: httpx.AsyncClient) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b" " * 16384

    response = await client.post("/v1/jobs", content=chunks(), headers=JSON)
    assert (response.status_code, code_of(response)) == (413, "payload_too_large")
    assert sent <= 6


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "text/json"]
)
async def test_another_media_type_is_refused(client: httpx.AsyncClient, content_type: str) -> None:
    headers = {"content-type": content_type}
    response = await client.post("/v1/jobs", content=b'{"prompt": "x"}', headers=headers)
    assert (response.status_code, code_of(response)) == (415, "unsupported_media_type")


async def test_parameters_of_the_media_type_are_ignored(client: httpx.AsyncClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    response = await client.post("/v1/jobs", content=b'{"prompt": "x"}', headers=headers)
    assert response.status_code == 202


async def test_a_compressed_body_is_refused(client: httpx.AsyncClient) -> None:
    headers = JSON | {"content-encoding": "gzip"}
    response = await client.post("/v1/jobs", content=b"\x1f\x8b", headers=headers)
    assert (response.status_code, code_of(response)) == (415, "unsupported_media_type")


async def test_a_message_quotes_no_more_than_a_little_of_the_body(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/jobs", json={"prompt": "x", "k" * 50_000: 1})
    assert code_of(response) == "validation_failed"
    assert len(response.content) < 2000


async def test_thousands_of_wrong_fields_are_answered_with_a_bounded_list(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/jobs", json={"prompt": "x"} | {f"k{n}": 1 for n in range(900)})
    assert code_of(response) == "validation_failed"
    assert len(response.json()["errors"]) == 100


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(json_values, st.integers(0, 8))
def test_depth_is_measured_exactly(value: object, limit: int) -> None:
    text = json.dumps(value).encode()
    assert is_deeper_than(text, limit) == (depth_of(value) > limit)


@given(st.binary(max_size=200) | st.text(alphabet='[]{}",:\\u0dA1e-. ', max_size=200).map(str.encode))
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    value: object = None
    with contextlib.suppress(ValidationFailed):
        value = parse_json_object(body)
    assert value is None or value == json.loads(body)


@given(json_values.filter(lambda value: not isinstance(value, dict)))
def test_only_an_object_is_a_request(value: object) -> None:
    with pytest.raises(ValidationFailed):
        parse_json_object(json.dumps(value).encode())


def test_the_allowed_depth_parses() -> None:
    nested = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert parse_json_object(f'{{"a": {nested}}}'.encode())
    with pytest.raises(ValidationFailed):
        parse_json_object(f'{{"a": [{nested}]}}'.encode())


FIELDS = [*JobRequest.model_fields, "role", "content", "type"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=3), json_values, max_size=6))
async def test_no_request_is_answered_with_a_server_error(client: httpx.AsyncClient, body: object) -> None:
    content = json.dumps(body).encode()
    response = await client.post("/v1/jobs", content=content, headers=JSON)
    assert response.status_code in {202, 404, 422}


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
    label=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=64),
)
async def test_any_text_comes_back_as_it_was_sent(client: httpx.AsyncClient, text: str, label: str) -> None:
    response = await client.post("/v1/jobs", json={"prompt": text, "metadata": {label: label}})
    assert response.status_code == 202
    assert (await client.get(response.headers["location"])).json()["metadata"] == {label: label}
