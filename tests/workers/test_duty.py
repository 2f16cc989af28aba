"""Duties: one that raises or hangs stops no other."""

import asyncio

from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import create_engine, fetch_all
from models.file import ADD_CHUNK, FINISH_FILE, SWEEP_FILE
from models.ids import new_id
from models.wakeups import Wakeups
from tests.stack import Database, Stack, wait_until
from workers.duty import Duty, keep_performing
from workers.maintenance import Maintenance


def test_one_that_raises_or_hangs_is_tried_again_and_stops_no_other() -> None:
    calls: dict[str, int] = dict.fromkeys(("raises", "hangs", "works"), 0)

    async def raises() -> None:
        calls["raises"] += 1
        raise RuntimeError("nobody foresaw this")

    async def hangs() -> None:
        calls["hangs"] += 1
        await asyncio.sleep(3600)

    async def works() -> None:
        calls["works"] += 1

    async def perform() -> None:
        duties = [Duty(name, 0.01, act, 0.05) for name, act in (("a", raises), ("b", hangs), ("c", works))]
        tasks = [asyncio.create_task(keep_performing(duty)) for duty in duties]
        async with asyncio.timeout(30):
            while min(calls.values()) < 3:  # noqa: ASYNC110 - it is the duties that are watched
                await asyncio.sleep(0.01)
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(perform())


def test_a_relay_goes_on_folding_and_sweeping_when_jobs_cannot_be_expired(stack: Stack, database: Database) -> None:
    """Postgres refuses one tenant's expiry, as a time-out or a broken row would; the other duties are done."""
    stack.catalog({"echo": {}})
    (late,) = database.submit(["late"], expires_in=-1)
    database.rows(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'canceling statement due to statement timeout' USING ERRCODE = '57014'; END $$"
    )
    database.rows("CREATE TRIGGER refuse BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION refuse()")
    budget = database.value(
        'INSERT INTO budgets (id, tenant_id, scope, "window", limit_usd, alert_at)'
        " VALUES (gen_random_uuid(), %s, 'tenant', 'total', 1, 0.8) RETURNING id",
        database.tenant_id,
    )
    period = database.value(
        "INSERT INTO budget_periods (budget_id, period_start, limit_usd) VALUES (%s, now(), 1) RETURNING id", budget
    )
    database.rows("INSERT INTO budget_movements (period_id, reserved_delta, spent_delta) VALUES (%s, 0, 0.5)", period)
    database.rows(
        "INSERT INTO files (id, tenant_id, purpose, filename, bytes, expires_at)"
        " VALUES (gen_random_uuid(), %s, 'batch', 'a', 0, now())",
        database.tenant_id,
    )
    stack.relay()
    wait_until(lambda: database.value("SELECT count(*) FROM files") == 0)
    wait_until(lambda: database.value("SELECT count(*) FROM budget_movements") == 0)
    wait_until(lambda: b"duty=expire" in b"".join(log.read_bytes() for log in stack.directory.glob("relay*.log")))
    assert database.value("SELECT status FROM jobs WHERE id = %s", late) == "queued"
    database.rows("DROP TRIGGER refuse ON jobs")
    wait_until(lambda: database.value("SELECT status FROM jobs WHERE id = %s", late) == "expired")


async def _sweep_files(engine: AsyncEngine) -> None:
    wakeups = Wakeups("redis://127.0.0.1:1")
    await Maintenance(engine, engine, wakeups, writer=new_id(), free=()).sweep_files()
    await wakeups.close()


def test_a_large_file_is_deleted_in_steps_and_one_that_cannot_be_deleted_stops_no_other(
    database: Database,
) -> None:
    """Statements delete at most 16 chunks, where one that deleted the file at once would be refused."""
    stuck, large = new_id(), new_id()
    for file_id, age in ((stuck, 2), (large, 1)):
        database.rows(
            "INSERT INTO files (id, tenant_id, purpose, filename, bytes, expires_at)"
            " VALUES (%s, %s, 'batch', 'a', 40, now() - make_interval(hours => %s))",
            *(file_id, database.tenant_id, age),
        )
        database.rows("INSERT INTO file_chunks SELECT %s, n, 'x' FROM generate_series(0, 39) n", file_id)
    database.rows(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF (SELECT count(*) > 16 OR bool_or(file_id = '{stuck}') FROM gone) THEN"
        " RAISE EXCEPTION 'too much' USING ERRCODE = '57014'; END IF; RETURN NULL; END $$"
    )
    database.rows(
        "CREATE TRIGGER refuse AFTER DELETE ON file_chunks REFERENCING OLD TABLE AS gone"
        " FOR EACH STATEMENT EXECUTE FUNCTION refuse()"
    )

    async def sweep() -> None:
        engine = create_engine(database.url, name="tests", pool_size=2)
        await _sweep_files(engine)
        await engine.dispose()

    asyncio.run(sweep())
    left = database.rows("SELECT file_id, count(*) AS chunks FROM file_chunks GROUP BY 1")
    assert left == [{"file_id": stuck, "chunks": 40}]
    assert database.value("SELECT count(*) FROM files WHERE id = %s", large) == 0
    database.rows("DROP TRIGGER refuse ON file_chunks")
    asyncio.run(sweep())
    assert database.value("SELECT count(*) FROM files") == 0


def test_an_upload_that_is_being_swept_cannot_be_gone_on_with(database: Database) -> None:
    upload = new_id()
    database.rows(
        "INSERT INTO files (id, tenant_id, purpose, filename, bytes, expires_at)"
        " VALUES (%s, %s, 'batch', 'a', -1, now() - interval '1 hour')",
        *(upload, database.tenant_id),
    )
    database.rows("INSERT INTO file_chunks SELECT %s, n, 'x' FROM generate_series(0, 3) n", upload)

    async def go_on() -> None:
        engine = create_engine(database.url, name="tests", pool_size=2)
        await fetch_all(engine, SWEEP_FILE, {"id": upload, "chunks": 1})
        assert not await fetch_all(engine, ADD_CHUNK, {"id": upload, "number": 4, "data": b"x"})
        assert not await fetch_all(engine, FINISH_FILE, {"id": upload, "bytes": 5, "expires_in_s": None})
        await engine.dispose()

    asyncio.run(go_on())
