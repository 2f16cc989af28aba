"""Statements that run all the time read what they are about, however many finished jobs are stored.

Each is explained on 200,000 jobs that Postgres has not counted yet, and again after it has.
"""

from collections.abc import AsyncIterator
from datetime import datetime
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks.snapshot import open_snapshot
from models.attempt import CLAIM, RESCUE, SELECT_STILL_HELD
from models.database import create_engine, dump_json, fetch_all
from models.dispatch import DISPATCH, UNDISPATCH_STALE
from models.ids import new_id
from models.job import EXPIRE_JOBS, LIST_BATCH_JOBS, LIST_JOBS
from models.lifecycle import JobStatus
from models.lost import SELECT_UNBOOKED
from tests.explain import explain, pages_read, rows_read, scans
from tests.stack import Database

pytestmark = pytest.mark.anyio

FINISHED = 200_000
EXPIRE = {"free": ["echo"], "limit": 500, "grace_s": 60.0, "error": "{}", "writer": UUID(int=1)}
RESCUED = {"free": ["echo"], "local_queues": [], "limit": 500, "max_deliveries": 5, "writer": UUID(int=1)}
RESCUED |= {"max_deliveries_error": "{}", "expired_error": "{}"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def database(database: Database) -> Database:
    """The database with its tenant, which is made outside of an event loop."""
    assert database.api_key
    return database


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url, name="tests", pool_size=2)
    yield engine
    await engine.dispose()


def load(database: Database, batch_id: UUID) -> None:
    """Completed jobs, a quarter of them of a batch; few that failed, all of them the oldest; 2,000 that wait."""
    columns = "id, tenant_id, status, model, route, tier, queue, request, expires_at, finished_at, dispatched_at"
    job = "uuidv7(), %s, {status}, 'echo', '{{echo}}', 'mock', 'mock', '{{}}', now() + interval '1 day', {finished}"
    done = job.format(status="CASE WHEN n < 20 THEN 'failed' ELSE 'completed' END", finished="now(), now()")
    database.rows(
        f"INSERT INTO jobs ({columns}, batch_id, batch_row, batch_round)"
        f" SELECT {done}, CASE WHEN n %% 4 = 0 THEN CAST(%s AS uuid) END, n, 0 FROM generate_series(1, {FINISHED}) n",
        *(database.tenant_id, batch_id),
    )
    waiting = job.format(status="'queued'", finished="NULL, NULL")
    database.rows(f"INSERT INTO jobs ({columns}) SELECT {waiting} FROM generate_series(1, 2000)", database.tenant_id)


def new_batch(database: Database) -> UUID:
    """The line of a batch."""
    batch_id = new_id()
    database.rows(
        "INSERT INTO batches (id, tenant_id, status, endpoint, completion_window, expires_at)"
        " VALUES (%s, %s, 'in_progress', '/v1/chat/completions', '24h', now() + interval '1 day')",
        *(batch_id, database.tenant_id),
    )
    return batch_id


def overdue(database: Database) -> None:
    """Ten jobs that are past their time and wait, ten that run, two of them for longer than the grace."""
    for status, late_s in (("queued", 10), ("in_progress", 10), ("in_progress", 100)):
        database.rows(
            "INSERT INTO jobs (id, tenant_id, status, model, route, tier, queue, request, worker_id, attempt_id,"
            " expires_at) SELECT uuidv7(), %s, %s, 'echo', '{echo}', 'mock', 'mock', '{}', uuidv7(), uuidv7(),"
            " now() - make_interval(secs => %s) FROM generate_series(1, CASE %s WHEN 100 THEN 2 ELSE 10 END)",
            *(database.tenant_id, status, late_s, late_s),
        )


@pytest.mark.parametrize("counted", [False, True], ids=["never counted", "counted"])
async def test_statements_do_not_read_finished_jobs(database: Database, engine: AsyncEngine, counted: bool) -> None:
    database.rows("ALTER TABLE jobs SET (autovacuum_enabled = false)")
    batch_id = new_batch(database)
    load(database, batch_id)
    overdue(database)
    if counted:
        database.rows("VACUUM ANALYZE jobs")

    plan = await explain(engine, EXPIRE_JOBS, EXPIRE)
    assert plan["Actual Rows"] == 12
    assert scans(plan, "jobs") <= {"ix_jobs_expiring", "ix_jobs_in_progress", "pk_jobs"}
    assert rows_read(plan, "jobs") < 200

    plan = await explain(engine, RESCUE, RESCUED)
    assert plan["Actual Rows"] == 12
    assert scans(plan, "jobs") <= {"ix_jobs_in_progress", "pk_jobs"}
    assert rows_read(plan, "jobs") < 200

    page = {"tenant_id": database.tenant_id, "after": None, "limit": 21}
    last_id = database.value("SELECT max(id::text) FROM jobs")
    for status in (None, *JobStatus):
        if status == JobStatus.COMPLETED and not counted:
            continue  # Postgres takes it for rare, as it takes every status then, and sorts
        for after in (None, last_id):
            plan = await explain(engine, LIST_JOBS[status], page | {"after": after})
            assert rows_read(plan, "jobs") < 2100, (status, after)
            in_batch = page | {"batch_id": batch_id, "after": None}
            plan = await explain(engine, LIST_BATCH_JOBS[status], in_batch)
            assert rows_read(plan, "jobs") < 200, status


async def test_pages_of_a_batch_by_status_have_every_job_once(database: Database, engine: AsyncEngine) -> None:
    batch_id = new_batch(database)
    database.rows(
        "INSERT INTO jobs (id, tenant_id, status, model, route, tier, queue, request, expires_at, finished_at,"
        " batch_id, batch_row, batch_round)"
        " SELECT uuidv7(), %s, CASE WHEN n %% 3 = 0 THEN 'failed' ELSE 'completed' END, 'echo', '{echo}', 'mock',"
        " 'mock', '{}', now(), now(), %s, n, round FROM generate_series(1, 20) n, generate_series(0, 1) round",
        *(database.tenant_id, batch_id),
    )
    for status, count in ((None, 40), (JobStatus.FAILED, 12), (JobStatus.COMPLETED, 28), (JobStatus.QUEUED, 0)):
        seen: list[object] = []
        after = None
        while rows := await fetch_all(
            engine,
            LIST_BATCH_JOBS[status],
            {"tenant_id": database.tenant_id, "batch_id": batch_id, "after": after, "limit": 7},
        ):
            seen += [row["id"] for row in rows]
            after = rows[-1]["id"]
        assert len(seen) == len(set(seen)) == count
    stranger = {"tenant_id": new_id(), "batch_id": batch_id, "after": None, "limit": 7}
    assert await fetch_all(engine, LIST_BATCH_JOBS[None], stranger) == []


async def test_beside_an_open_transaction_statements_do_not_read_what_finished_since(
    database: Database, engine: AsyncEngine
) -> None:
    worker_id = new_id()
    with open_snapshot(database.url):
        since, ids = finish_many_and_submit_some(database, worker_id)
        choice = {"tenants": [database.tenant_id], "priorities": [1], "since": [since], "weights": [1]}
        choice |= {"published": [0], "served": [0.0], "most": [10], "queue": "mock", "rows": False, "room": 10}
        offers = dump_json([{"job_id": job_id, "attempt_id": new_id()} for job_id in ids])
        unbooked: dict[str, object] = {"orphans": False, "after": None, "grace_s": 60.0, "free": [], "limit": 50}
        for statement, params in (
            (DISPATCH, choice),
            (UNDISPATCH_STALE, {"queue": "mock", "since": since, "stale_s": 1.0}),
            (CLAIM, {"rows": offers, "worker_id": worker_id, "providers": "{}", "local_queues": []}),
            (SELECT_STILL_HELD, {"job_ids": ids, "worker_id": worker_id}),
            (EXPIRE_JOBS, EXPIRE),
            (SELECT_UNBOOKED, unbooked),
        ):
            plan = await explain(engine, statement, params)
            assert pages_read(plan) < 600, (statement, scans(plan, "jobs"))


def finish_many_and_submit_some(database: Database, worker_id: UUID) -> tuple[datetime, list[UUID]]:
    """30,000 jobs that live and end, then 20 that wait: when these were submitted, and their ids."""
    insert = (
        "INSERT INTO jobs (id, tenant_id, model, route, tier, queue, request, expires_at)"
        " SELECT uuidv7(), %s, 'echo', '{echo}', 'mock', 'mock', '{}', now() + interval '1 day'"
        " FROM generate_series(1, %s)"
    )
    database.rows("ALTER TABLE jobs SET (autovacuum_enabled = false)")
    database.rows(insert, *(database.tenant_id, 30_000))
    database.rows("UPDATE jobs SET dispatched_at = now()")
    database.rows("UPDATE jobs SET status = 'in_progress', worker_id = %s", worker_id)
    database.rows("UPDATE jobs SET status = 'completed', finished_at = now(), worker_id = NULL")
    since = database.value("SELECT now()")
    database.rows(insert, *(database.tenant_id, 20))
    ids = [row["id"] for row in database.rows("SELECT id FROM jobs WHERE finished_at IS NULL ORDER BY id")]
    database.rows("VACUUM ANALYZE jobs")
    return since, ids
