"""Writing rows: any text survives COPY, and a batch is there whole or not at all."""

from collections.abc import AsyncIterator
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.batches import rows as rows_module
from api.batches.rows import BatchDraft, Chunk, Row, encode_rows, write_batch
from models.database import fetch_all, fetch_one, transaction
from models.errors import Unavailable, ValidationFailed
from models.ids import new_id
from models.intake import ABANDON_INTAKE, BEGIN_INTAKE, COPY_ROWS, SWEEP_ROWS
from models.wakeups import Wakeups
from tests.api.acting import Tenant
from workers import maintenance as maintenance_module
from workers.maintenance import Maintenance

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


async def slow_chunks(engine: AsyncEngine, draft: BatchDraft, seen: list[tuple[int, int, int]]) -> AsyncIterator[Chunk]:
    """Six rows, one by one; before each, what others see of the batch: its rows, itself, and who holds a snapshot."""
    look = text(
        "SELECT (SELECT count(*) FROM batch_rows WHERE batch_id = :id) AS rows,"
        " (SELECT count(*) FROM batches WHERE id = :id) AS batches,"
        " (SELECT count(*) FROM intakes WHERE id = :id) AS intakes"
    )
    for number in range(1, 7):
        found = await fetch_one(engine, look, {"id": draft.id})
        assert found is not None
        seen.append((found["rows"], found["batches"], found["intakes"]))
        yield encode_rows(draft.id, [Row(number, number, cells=["x"])])


async def test_rows_are_committed_in_slices_and_their_batch_is_there_only_at_the_end(
    engine: AsyncEngine, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "_SLICE_ROWS", 2)
    seen: list[tuple[int, int, int]] = []
    draft = draft_of(tenant)
    assert await write_batch(engine, draft, slow_chunks(engine, draft, seen)) == draft.id
    assert seen == [(0, 0, 0), (0, 0, 0), (2, 0, 1), (2, 0, 1), (4, 0, 1), (4, 0, 1)]
    assert len(await rows_of(engine, draft.id)) == 6
    assert await intakes(engine, draft.id) == 0


async def intakes(engine: AsyncEngine, batch_id: UUID) -> int:
    return len(await fetch_all(engine, text("SELECT FROM intakes WHERE id = :id"), {"id": batch_id}))


async def test_a_file_that_is_refused_after_some_slices_leaves_nothing(
    engine: AsyncEngine, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "_SLICE_ROWS", 2)
    draft = draft_of(tenant)

    async def refused() -> AsyncIterator[Chunk]:
        for number in range(1, 6):
            yield encode_rows(draft.id, [Row(number, number, cells=["x"])])
        raise ValidationFailed("The last row is wrong.")

    with pytest.raises(ValidationFailed, match="last row"):
        await write_batch(engine, draft, refused())
    assert await rows_of(engine, draft.id) == []
    assert await intakes(engine, draft.id) == 0


async def test_a_writer_whose_rows_were_given_up_can_write_no_more_and_makes_no_batch(
    engine: AsyncEngine, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "_SLICE_ROWS", 1)
    draft = draft_of(tenant)

    async def stalled(rows: int) -> AsyncIterator[Chunk]:
        for number in range(1, rows + 1):
            if number == 3:
                await fetch_all(engine, ABANDON_INTAKE, {"id": draft.id, "writer": None})
                await fetch_all(engine, SWEEP_ROWS, {"id": draft.id, "rows": 100})
            yield encode_rows(draft.id, [Row(number, number, cells=["x"])])

    with pytest.raises(Unavailable):
        await write_batch(engine, draft, stalled(4))
    assert await rows_of(engine, draft.id) == []
    assert await fetch_all(engine, text("SELECT FROM batches WHERE id = :id"), {"id": draft.id}) == []


async def test_a_second_reader_starts_from_nothing_and_the_first_cannot_begin_its_half(
    engine: AsyncEngine, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "_SLICE_ROWS", 1)
    draft = draft_of(tenant, waits=True)
    waiting = text(
        "INSERT INTO batches (id, tenant_id, status, endpoint, completion_window, expires_at)"
        " VALUES (:id, :tenant_id, 'validating', '/v1/chat/completions', '24h', now() + interval '1 day')"
    )
    await fetch_all(engine, waiting, {"id": draft.id, "tenant_id": tenant.id})
    whole = [encode_rows(draft.id, [Row(number, number, cells=["x"])]) for number in range(1, 5)]

    async def overtaken() -> AsyncIterator[Chunk]:
        yield whole[0]
        yield whole[1]
        assert await write_batch(engine, draft, chunks(*whole)) == draft.id
        yield whole[2]

    with pytest.raises(Unavailable):
        await write_batch(engine, draft, overtaken())
    assert [row["number"] for row in await rows_of(engine, draft.id)] == [1, 2, 3, 4]
    batch = await fetch_one(engine, text("SELECT status, total FROM batches WHERE id = :id"), {"id": draft.id})
    assert batch is not None
    assert dict(batch) == {"status": "in_progress", "total": 4}


async def test_rows_of_a_dead_writer_are_swept_in_steps_and_those_of_a_live_one_are_not(
    engine: AsyncEngine, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, api_redis_url: str
) -> None:
    monkeypatch.setattr(maintenance_module, "_ROWS_AT_ONCE", 3)
    begun, dead, alive = draft_of(tenant), new_id(), new_id()
    rows = [Row(number, number, cells=["x"]) for number in range(1, 11)]
    await write_batch(engine, begun, chunks(encode_rows(begun.id, rows)))
    for batch_id in (dead, alive):
        await fetch_all(engine, BEGIN_INTAKE, {"id": batch_id, "writer": new_id()})
        await fetch_all(
            engine,
            text("INSERT INTO batch_rows (batch_id, number, line) SELECT :id, n, n FROM generate_series(1, 10) n"),
            {"id": batch_id},
        )
    silent = text("UPDATE intakes SET touched_at = now() - interval '1 hour' WHERE id = :id")
    await fetch_all(engine, silent, {"id": dead})
    wakeups = Wakeups(api_redis_url)
    await Maintenance(engine, engine, wakeups, writer=new_id(), free=()).sweep_intakes()
    await wakeups.close()
    assert [len(await rows_of(engine, batch_id)) for batch_id in (begun.id, dead, alive)] == [10, 0, 10]
    assert (await intakes(engine, dead), await intakes(engine, alive)) == (0, 1)
