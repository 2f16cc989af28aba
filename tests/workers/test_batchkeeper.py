"""The batch keeper: a batch that cannot be moved, or takes long, holds up no other; sizes come from Postgres."""

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal
from uuid import UUID

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import create_engine
from models.ids import new_id
from models.wakeups import Wakeups
from tests.batches import batch, new_batch, wait_until_ended
from tests.stack import Database, Stack, kill, wait_until
from workers import batchkeeper
from workers.batchkeeper import BatchKeeper


def keep(database: Database, act: Callable[[BatchKeeper], Awaitable[None]]) -> None:
    """Do something with a keeper of its own."""

    async def run() -> None:
        engine: AsyncEngine = create_engine(database.url, name="tests", pool_size=4)
        wakeups = Wakeups("redis://127.0.0.1:1")
        keeper = BatchKeeper(engine, engine, wakeups, writer=new_id())
        try:
            await act(keeper)
        finally:
            await keeper.close()
            await wakeups.close()
            await engine.dispose()

    asyncio.run(run())


def another_tenant(database: Database) -> UUID:
    tenant_id = new_id()
    database.rows("INSERT INTO tenants (id, name) VALUES (%s, %s)", tenant_id, tenant_id.hex)
    return tenant_id


def late_batch(database: Database, tenant_id: UUID | None = None) -> UUID:
    """A batch whose deadline has passed: the keeper is to finalise it."""
    batch_id = new_batch(database, ["a"])
    database.rows(
        "UPDATE batches SET expires_at = now() - interval '1 hour', tenant_id = coalesce(%s, tenant_id) WHERE id = %s",
        *(tenant_id, batch_id),
    )
    return batch_id


def test_a_batch_that_cannot_be_moved_holds_up_no_other(database: Database) -> None:
    broken, same, other = late_batch(database), late_batch(database), late_batch(database, another_tenant(database))
    database.rows("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$")
    database.rows(
        f"CREATE TRIGGER refuse BEFORE UPDATE ON batches FOR EACH ROW WHEN (OLD.id = '{broken}')"
        " EXECUTE FUNCTION refuse()"
    )

    async def look(keeper: BatchKeeper) -> None:
        await keeper.look()
        await keeper.look()

    keep(database, look)
    assert [batch(database, each)["status"] for each in (broken, same, other)] == ["in_progress", "expired", "expired"]


def test_a_batch_that_takes_long_holds_up_no_other_tenants(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batchkeeper, "_PATIENCE_S", 0.2)
    slow, other = late_batch(database), late_batch(database, another_tenant(database))
    with psycopg.connect(database.url.replace("+psycopg", "")) as holder:
        holder.execute("SELECT FROM batches WHERE id = %s FOR UPDATE", [slow])

        async def look(keeper: BatchKeeper) -> None:
            for _ in range(200):
                await keeper.look()
                if batch(database, other)["status"] == "expired":
                    break

        keep(database, look)
        assert batch(database, other)["status"] == "expired"
    assert batch(database, slow)["status"] == "in_progress"


def test_a_batch_whose_budget_has_no_room_is_refused_before_a_row_is_written(database: Database) -> None:
    """A million rows that are marked and rolled back are a million dead rows at each try."""
    rows = [f"row {n}" for n in range(50)]
    budget = database.value(
        'INSERT INTO budgets (id, tenant_id, scope, "window", limit_usd, alert_at)'
        " VALUES (gen_random_uuid(), %s, 'tenant', 'total', 1, 0.8) RETURNING id",
        database.tenant_id,
    )
    period = database.value(
        "INSERT INTO budget_periods (budget_id, period_start, limit_usd) VALUES (%s, timestamptz 'epoch', 1)"
        " RETURNING id",
        budget,
    )
    batch_id = new_batch(database, rows, reserved_usd=Decimal("0.1"), budget_periods=[period])
    database.rows(
        "UPDATE batches SET status = 'paused', pause_reason = 'budget_exhausted', next_row = 51, reserved_usd = 0"
    )
    database.rows(
        "INSERT INTO jobs (id, tenant_id, status, model, route, tier, queue, request, expires_at, finished_at,"
        " batch_id, batch_row, batch_round, error)"
        " SELECT uuidv7(), %s, 'failed', 'echo', '{echo}', 'mock', 'mock', '{}', now(), now(), %s, n, 0,"
        ' \'{"code": "budget_exceeded"}\' FROM generate_series(1, 50) n',
        *(database.tenant_id, batch_id),
    )
    database.rows(
        "INSERT INTO batch_counts (batch_id, writer, failed, unpaid) VALUES (%s, %s, 50, 50)", batch_id, new_id()
    )
    written = "SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'batch_rows'"
    keep(database, BatchKeeper.look)
    assert batch(database, batch_id)["status"] == "paused"
    database.rows("SELECT pg_stat_force_next_flush()")
    assert database.value("SELECT count(*) FROM batch_rows WHERE round > 0") == 0
    wait_until(
        lambda: database.value("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'headrace-tests'") == 0
    )
    assert database.value(written) == 0

    database.rows("UPDATE budget_periods SET limit_usd = 100")
    keep(database, BatchKeeper.look)
    assert batch(database, batch_id)["status"] == "in_progress"
    assert batch(database, batch_id)["reserved_usd"] == Decimal(5)
    assert database.value("SELECT count(*) FROM batch_rows WHERE round = 1") == 50
    assert database.value("SELECT reserved_usd FROM budget_periods") == Decimal(5)


def test_the_files_of_a_batch_get_their_sizes_from_another_relay_when_the_first_one_died(
    stack: Stack, database: Database
) -> None:
    stack.catalog({"echo": {}})
    batch_id = new_batch(database, [f"row {n}" for n in range(30)])
    database.rows("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$")
    database.rows(
        "CREATE TRIGGER refuse BEFORE UPDATE ON files FOR EACH ROW WHEN (NEW.bytes > 0) EXECUTE FUNCTION refuse()"
    )
    relay = stack.relay()
    stack.worker()
    assert wait_until_ended(database, batch_id) == "completed"
    kill(relay)
    database.rows("DROP TRIGGER refuse ON files")
    assert database.value("SELECT bytes FROM files") == 0
    stack.relay()
    wait_until(lambda: database.value("SELECT bytes FROM files") > 0)
    sizes = database.value("SELECT bytes FROM files")
    assert sizes > 30 * 100
