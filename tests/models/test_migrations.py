"""Migrations: one process at a time, however long the other takes; indexes are made without blocking writes."""

import subprocess
import sys
import threading

import psycopg
import pytest
from alembic import command

from models.database import alembic_config, migrate
from tests.stack import ROOT, Database, wait_until

BEFORE = "20261127_dispatch"
ADVISORY_LOCK = 0x48454144
VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)"


@pytest.fixture
def old(database: Database) -> Database:
    """A database with the schema before the newest indexes, and a job in it."""
    command.downgrade(alembic_config(database.url), BEFORE)
    database.submit(["a"])
    return database


def index_of(database: Database) -> str:
    return str(database.value("SELECT pg_get_indexdef(to_regclass('ix_jobs_tenant_status'))"))


def test_a_second_migrator_waits_beyond_the_lock_time_out_and_then_goes_on(old: Database) -> None:
    with psycopg.connect(old.url.replace("+psycopg", ""), autocommit=True) as first:
        first.execute("SELECT pg_advisory_lock(%s)", [ADVISORY_LOCK])
        first.execute("ALTER DATABASE " + old.url.rsplit("/", 1)[1] + " SET lock_timeout = '200ms'")
        second = threading.Thread(target=migrate, args=(old.url,))
        second.start()
        second.join(2)
        assert second.is_alive()
        # One that waited in the lock would be ended by the lock's time-out, sooner or later.
        assert old.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") == 0
        assert old.value(VALID + " UNION ALL SELECT NULL LIMIT 1", "ix_jobs_tenant_status") is None
    second.join(60)
    assert not second.is_alive()
    assert old.value(VALID, "ix_jobs_tenant_status") is True


def test_two_migrators_at_once_do_not_wait_for_one_another_while_an_index_is_made(old: Database) -> None:
    """CREATE INDEX CONCURRENTLY waits for every open snapshot: a migrator that waits for its turn must have none."""
    url = old.url.replace("+psycopg", "")
    program = "import sys; from models.database import migrate; migrate(sys.argv[1])"
    with psycopg.connect(url) as reader:  # keeps the index from being finished until all three have come
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT count(*) FROM jobs")
        migrators = [subprocess.Popen([sys.executable, "-c", program, old.url], cwd=ROOT) for _ in range(3)]
        building = "SELECT count(*) FROM pg_stat_activity WHERE query ILIKE 'CREATE INDEX CONCURRENTLY%%'"
        wait_until(lambda: old.value(building) == 1)
        wait_until(lambda: old.value("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()") >= 5)
        with psycopg.connect(url, autocommit=True) as writer:  # writes go on
            writer.execute("SET lock_timeout = '5s'")
            writer.execute("UPDATE jobs SET dispatched_at = now()")
    assert [migrator.wait(60) for migrator in migrators] == [0, 0, 0]
    assert old.value(VALID, "ix_jobs_tenant_status") is True


def test_an_invalid_index_that_an_interrupted_migration_left_is_made_again(old: Database) -> None:
    old.submit(["b"])
    with pytest.raises(psycopg.errors.UniqueViolation):
        old.rows("CREATE UNIQUE INDEX CONCURRENTLY ix_jobs_tenant_status ON jobs (status)")
    assert old.value(VALID, "ix_jobs_tenant_status") is False
    migrate(old.url)
    assert old.value(VALID, "ix_jobs_tenant_status") is True
    assert "(tenant_id, status, id)" in index_of(old)


def test_a_migration_that_is_run_again_leaves_a_valid_index(old: Database) -> None:
    old.rows("CREATE INDEX ix_jobs_tenant_status ON jobs (tenant_id, status, id) WHERE status <> 'completed'")
    before = old.value("SELECT to_regclass('ix_jobs_tenant_status')::oid::bigint")
    migrate(old.url)
    assert old.value("SELECT to_regclass('ix_jobs_tenant_status')::oid::bigint") == before
