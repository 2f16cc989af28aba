"""Writing rows: any text survives COPY, and a batch is there whole or not at all."""

from collections.abc import AsyncIterator
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.batches.rows import BatchDraft, Chunk, Row, encode_rows, write_batch
from models.database import fetch_all, fetch_one, transaction
from models.errors import ValidationFailed
from models.ids import new_id
from models.intake import COPY_ROWS
from tests.api.acting import Tenant

pytestmark = pytest.mark.anyio

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=10) | st.sampled_from(
    ["\\", '"', "\\N", "NULL", "{}", ",", "\x1f", "\x1e", "\t", "\r\n", "\\.", "'", 'a\\"\nb']
)
ROWS = st.lists(
    st.builds(
        Row,
        number=st.just(0),
        line=st.integers(1, 2**31 - 1),
        custom_id=st.none() | TEXTS,
        cells=st.none() | st.lists(TEXTS, max_size=4),
        request=st.none() | st.dictionaries(TEXTS, TEXTS, max_size=2),
        reserved_usd=st.decimals(0, 1000, places=6),
        digest=st.none() | st.binary(min_size=16, max_size=16),
    ),
    min_size=1,
    max_size=10,
)


async def chunks(*groups: Chunk) -> AsyncIterator[Chunk]:
    for group in groups:
        yield group


def draft_of(tenant: Tenant, **columns: object) -> BatchDraft:
    draft = BatchDraft(tenant.id, new_id(), "/v1/chat/completions", "24h", 86_400)
    for name, value in columns.items():
        setattr(draft, name, value)
    return draft


async def rows_of(engine: AsyncEngine, batch_id: UUID) -> list[dict[str, object]]:
    query = text("SELECT * FROM batch_rows WHERE batch_id = :id ORDER BY number")
    return [dict(row) for row in await fetch_all(engine, query, {"id": batch_id})]


@given(rows=ROWS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
async def test_any_row_is_stored_as_it_is(engine: AsyncEngine, rows: list[Row]) -> None:
    batch_id = new_id()
    for number, row in enumerate(rows, 1):
        row.number = number
    async with transaction(engine) as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        async with driver.cursor() as cursor, cursor.copy(COPY_ROWS) as copy:
            await copy.write(encode_rows(batch_id, rows).data)
    stored = await rows_of(engine, batch_id)
    assert [[row[name] for name in ("line", "custom_id", "cells", "request", "digest")] for row in stored] == [
        [row.line, row.custom_id, None if row.cells is None else list(row.cells), row.request, row.digest]
        for row in rows
    ]
    assert [row["reserved_usd"] for row in stored] == [row.reserved_usd for row in rows]


async def test_a_batch_and_its_rows_are_written_together(engine: AsyncEngine, tenant: Tenant) -> None:
    draft = draft_of(tenant, columns=["a"], template=[{"column": 0}], labels={"x": "y"}, priority=2)
    first = encode_rows(draft.id, [Row(1, 2, cells=["x"], reserved_usd=Decimal("0.5"))])
    second = encode_rows(draft.id, [Row(2, 3, cells=["y"], reserved_usd=Decimal("0.25"))])
    assert await write_batch(engine, draft, chunks(first, second)) == draft.id
    batch = await fetch_one(engine, text("SELECT * FROM batches WHERE id = :id"), {"id": draft.id})
    assert batch is not None
    assert (batch["status"], batch["total"], batch["next_row"], batch["reserved_usd"]) == (
        "in_progress",
        2,
        1,
        Decimal("0.75"),
    )
    assert (batch["expires_at"] - batch["created_at"]).total_seconds() == 86_400
    assert [row["cells"] for row in await rows_of(engine, draft.id)] == [["x"], ["y"]]


async def test_repeated_custom_ids_are_named_and_nothing_is_stored(engine: AsyncEngine, tenant: Tenant) -> None:
    draft = draft_of(tenant)
    rows = [Row(number, number + 1, custom_id, cells=["x"]) for number, custom_id in enumerate("abcab", 1)]
    with pytest.raises(ValidationFailed) as caught:
        await write_batch(engine, draft, chunks(encode_rows(draft.id, rows)))
    assert [(problem.line, problem.message) for problem in caught.value.problems] == [
        (5, "The custom_id 'a' is also that of line 2."),
        (6, "The custom_id 'b' is also that of line 3."),
    ]
    assert await rows_of(engine, draft.id) == []


async def test_rows_with_the_same_digest_share_the_firsts_answer_and_its_reservation(
    engine: AsyncEngine, tenant: Tenant
) -> None:
    draft = draft_of(tenant, dedupe=True)
    rows = [
        Row(number, number, cells=[mark], reserved_usd=Decimal(1), digest=mark.encode())
        for number, mark in enumerate("xyxxz", 1)
    ]
    await write_batch(engine, draft, chunks(encode_rows(draft.id, rows)))
    stored = await rows_of(engine, draft.id)
    assert [row["same_as"] for row in stored] == [None, None, 1, 1, None]
    batch = await fetch_one(engine, text("SELECT * FROM batches WHERE id = :id"), {"id": draft.id})
    assert batch is not None
    assert (batch["total"], batch["reserved_usd"]) == (5, Decimal(3))


async def test_a_batch_without_rows_is_refused(engine: AsyncEngine, tenant: Tenant) -> None:
    with pytest.raises(ValidationFailed, match="no rows"):
        await write_batch(engine, draft_of(tenant), chunks())


async def test_a_batch_that_was_cancelled_while_its_file_was_read_gets_no_rows(
    engine: AsyncEngine, tenant: Tenant
) -> None:
    draft = draft_of(tenant, waits=True)
    written = await write_batch(engine, draft, chunks(encode_rows(draft.id, [Row(1, 1, cells=["x"])])))
    assert written is None
    assert await rows_of(engine, draft.id) == []
