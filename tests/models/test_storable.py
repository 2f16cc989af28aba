"""What Postgres cannot store is cleaned before it is sent, whatever path it came by."""

from decimal import Decimal
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import FailureCode, JobFailure
from models.storable import MAX_INT, MAX_MESSAGE, dump_rows, storable_count, storable_text
from tests.stack import Database

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec=None)), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("plain", "plain"),
        ("$.a\0b: 1", "$.ab: 1"),
        ("half \ud83d of a pair", "half \ufffd of a pair"),
        ("grüße 😀", "grüße 😀"),
        ("", ""),
    ],
)
def test_text_is_without_nul_and_lone_surrogates(text: str, stored: str) -> None:
    assert storable_text(text) == stored


def test_a_failure_can_be_stored_whoever_made_it() -> None:
    failure = JobFailure(FailureCode.PROVIDER_REJECTED, "\0\udfff" + "x" * 10**6)
    assert len(failure.message) <= MAX_MESSAGE
    assert failure.message.startswith("\ufffdx")


@pytest.mark.parametrize(("count", "stored"), [(-5, 0), (7, 7), (2**31, MAX_INT), (2**80, MAX_INT)])
def test_counts_are_in_range(count: int, stored: int) -> None:
    assert storable_count(count) == stored


def test_rows_that_are_clean_are_dumped_as_they_are() -> None:
    row = {"id": UUID(int=1), "cost": Decimal("0.00000048"), "result": {"text": "a\\u0000b"}}
    assert orjson.loads(dump_rows([row])) == [
        {"id": str(UUID(int=1)), "cost": "4.8E-7", "result": {"text": "a\\u0000b"}}
    ]


@given(anything)
def test_rows_of_anything_can_be_dumped_without_nul(value: object) -> None:
    (row,) = orjson.loads(dump_rows([{"value": value}]))
    assert "\0" not in str(row["value"])


def test_postgres_takes_rows_of_anything(database: Database) -> None:
    worst = {"a\0b": ["\ud800", 2**70, -(2**200), 10**400, "\0", {"\udc00": None}], "n": float("nan")}
    stored = database.value("SELECT CAST(%s AS jsonb)", dump_rows([{"value": worst}]))
    assert set(stored[0]["value"]) == {"ab", "n"}
