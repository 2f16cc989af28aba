"""JSON that is well-formed and cannot be kept: refused with its field, on every way in, or kept to the last digit."""

import json
import math
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import create_engine as create_sync_engine
from sqlalchemy import text

from api.batches.forms import read_form
from api.bodies import MAX_INTEGER, MIN_INTEGER, parse_json_object
from models.database import NotStorable, dump_json
from models.errors import ValidationFailed
from tests.api.acting import Json, code_of
from tests.api.test_openai_batches import create, line, results, upload

pytestmark = pytest.mark.anyio

WIDE = 2**64
NASTY_TEXT = st.text(st.sampled_from(["a", "\0", "\ud800", "\udfff", "\U0001f600", "\\", '"', "\u2028"]), max_size=4)
NASTY = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 2**53 + 1, MIN_INTEGER, MIN_INTEGER - 1, MAX_INTEGER, MAX_INTEGER + 1, 10**39, -(10**39)])
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | NASTY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NASTY_TEXT, inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def stored(api_database_url: str) -> Any:  # Any: a function
    """Stores JSON text as jsonb in a real Postgres and reads it back."""
    engine = create_sync_engine(api_database_url)

    def store(value: str) -> object:
        with engine.connect() as connection:
            found = connection.execute(text("SELECT CAST(CAST(:value AS jsonb) AS text)"), {"value": value})
            return orjson.loads(found.scalar_one())

    yield store
    engine.dispose()


def is_same(found: Any, kept: Any) -> bool:  # Any: JSON
    """Whether two JSON values are equal; floats as numbers, which jsonb writes with other digits."""
    if isinstance(kept, float):
        return math.isclose(found, kept, rel_tol=1e-15)
    if isinstance(kept, list):
        return len(found) == len(kept) and all(map(is_same, found, kept))
    if isinstance(kept, dict):
        return bool(found.keys() == kept.keys()) and all(is_same(found[key], kept[key]) for key in kept)
    return bool(found == kept and type(found) is type(kept))


@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(value=NASTY)
def test_what_is_parsed_can_be_stored_and_read_again(stored: Any, value: object) -> None:
    body = json.dumps({"value": value}).encode()
    try:
        parsed = parse_json_object(body)
    except ValidationFailed as error:
        refusal = error
    else:
        assert is_same(stored(dump_json(parsed)), parsed)
        return
    assert refusal.problems[0].field


@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(value=NASTY, name=st.sampled_from(["stop", "response_format", "metadata", "fallbacks"]))
def test_a_form_keeps_nothing_that_cannot_be_stored(stored: Any, value: object, name: str) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"x": value}}}
    given = json.dumps(schema if name == "response_format" else value)
    try:
        request = read_form({"prompt": "x", name: given}).request.model_dump(by_alias=True)
    except ValidationFailed as error:
        refusal = error
    else:
        assert is_same(stored(dump_json(request[name])), request[name])
        return
    assert refusal.problems[0].field.startswith(name)


def schema_with(number: int) -> Json:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer", "maximum": number}}}


PATH = "response_format.json_schema.schema.maximum"


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/chat/completions"])
async def test_an_integer_beyond_64_bits_is_refused_with_its_place(client: httpx.AsyncClient, path: str) -> None:
    body = {"model": "wide", "messages": [{"role": "user", "content": "x"}], "response_format": schema_with(WIDE)}
    response = await client.post(path, json=body)
    assert (response.status_code, code_of(response)) == (422, "validation_failed")
    assert (response.json()["errors"][0]["field"], response.json()["error"]["param"]) == (PATH, PATH)
    assert str(WIDE) in response.json()["detail"]


async def test_the_widest_integers_are_kept_to_the_last_digit(client: httpx.AsyncClient) -> None:
    for number in (MAX_INTEGER, MIN_INTEGER):
        response = await client.post("/v1/jobs", json={"prompt": "x", "response_format": schema_with(number)})
        assert response.status_code == 202


async def test_a_line_with_such_an_integer_is_an_error_line_with_its_field(client: httpx.AsyncClient) -> None:
    lines = [line("a"), line("b", response_format=schema_with(WIDE)), line("c", seed=-WIDE)]
    batch = (await create(client, await upload(client, lines))).json()
    assert batch["request_counts"] == {"total": 3, "completed": 0, "failed": 2}
    told = [(row["custom_id"], row["error"]["code"], row["error"]["param"]) for row in await results(client, batch)]
    assert told == [("b", "validation_failed", PATH), ("c", "validation_failed", "seed")]


async def test_a_file_of_such_lines_alone_fails_with_each_line(client: httpx.AsyncClient) -> None:
    batch = (await create(client, await upload(client, [line("b", seed=WIDE), line("c", seed=-WIDE)]))).json()
    told = [(error["line"], error["param"], error["code"]) for error in batch["errors"]["data"]]
    assert batch["status"] == "failed"
    assert told == [(1, "seed", "validation_failed"), (2, "seed", "validation_failed")]


NASTY_LINES = {
    "a number that is none": '"temperature": NaN',
    "an endless number": '"temperature": Infinity',
    "a number too large": '"temperature": 1e999',
    "a number of many digits": f'"seed": {"9" * 5000}',
    "a lone surrogate": '"user": "\\ud800"',
    "a character that cannot be stored": '"stop": "\\u0000"',
    "a key that comes twice": '"seed": 1, "seed": 2',
    "a huge key": f'"{"k" * 100_000}": 1',
    "many keys": ", ".join(f'"k{number}": 1' for number in range(1100)),
    "deep nesting": f'"metadata": {"[" * 100}{"]" * 100}',
}


@pytest.mark.parametrize("name", NASTY_LINES)
async def test_a_line_that_cannot_be_kept_is_an_error_line_and_the_others_run(
    client: httpx.AsyncClient, name: str
) -> None:
    nasty = json.dumps(line("nasty")).removesuffix("}}") + f", {NASTY_LINES[name]}}}}}"
    content = f"{json.dumps(line('a'))}\n{nasty}\n{json.dumps(line('b'))}".encode()
    form = {"purpose": "batch"}
    file = (await client.post("/v1/files", files={"file": ("rows.jsonl", content)}, data=form)).json()
    batch = (await create(client, file["id"])).json()
    assert (batch["status"], batch["request_counts"]) == ("in_progress", {"total": 3, "completed": 0, "failed": 1})
    (row,) = await results(client, batch)
    assert (row["custom_id"], row["status"], row["error"]["code"]) == ("nasty", "failed", "validation_failed")
    assert len(row["error"]["message"]) < 1000


@pytest.mark.parametrize("name", NASTY_LINES)
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/chat/completions", "/v1/embeddings"])
async def test_such_a_body_is_refused(client: httpx.AsyncClient, path: str, name: str) -> None:
    body = json.dumps(line("a")["body"]).removesuffix("}") + f", {NASTY_LINES[name]}}}"
    response = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert (response.status_code, code_of(response)) in ((422, "validation_failed"), (413, "payload_too_large"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("metadata", '{"a": "x\\u0000"}'),
        ("metadata", '{"x\\u0000": "a"}'),
        ("stop", '["x\\u0000"]'),
        ("stop", '["\\ud800"]'),
        ("response_format", json.dumps(schema_with(WIDE))),
        ("response_format", json.dumps(schema_with(1)).replace("integer", "\\u0000")),
        ("response_format", json.dumps(schema_with(1)).replace("integer", "\\udfff")),
        ("seed", str(WIDE)),
        ("fallbacks", '["\\u0000"]'),
    ],
)
async def test_a_form_with_what_cannot_be_stored_is_refused_with_its_field(
    client: httpx.AsyncClient, field: str, value: str
) -> None:
    files = {"file": ("a.csv", b"text\nhello\n")}
    form = {"prompt": "Say {{text}}", "model": "wide", field: value}
    response = await client.post("/v1/batches/upload", files=files, data=form)
    assert (response.status_code, code_of(response)) == (422, "validation_failed")
    assert response.json()["errors"][0]["field"] == field


def test_a_value_that_json_cannot_carry_is_named_as_one() -> None:
    for value in (WIDE, "\ud800"):
        with pytest.raises(NotStorable):
            dump_json({"value": value})
