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
from tests.api.test_openai_batches import create, line, upload

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


async def test_a_line_with_such_an_integer_is_told_by_line_and_field(client: httpx.AsyncClient) -> None:
    file_id = await upload(client, [line("a"), line("b", response_format=schema_with(WIDE)), line("c", seed=-WIDE)])
    batch = (await create(client, file_id)).json()
    assert batch["status"] == "failed"
    told = [(error["line"], error["param"], error["code"]) for error in batch["errors"]["data"]]
    assert told == [(2, f"body.{PATH}", "validation_failed"), (3, "body.seed", "validation_failed")]


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
