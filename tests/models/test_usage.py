"""Usage added up by day: whatever is added up already, the sums are those of the ledger."""

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from models.budget import PUT_BUDGET, PUT_PERIOD
from models.database import create_engine, fetch_all, fetch_one
from models.event import RAISE_ANOMALIES
from models.ids import new_id
from models.ledger import select_usage
from models.usage import ROLL_UP, SELECT_CLOSED
from tests.explain import explain, rows_read
from tests.stack import Database

pytestmark = pytest.mark.anyio

GROUPINGS: tuple[list[str], ...] = ([], ["model"], ["day"], ["team", "user"], ["day", "model", "user", "team", "key"])
PLAIN = {
    "model": "llm",
    "team": "team",
    "user": "end_user",
    "key": "k.lookup",
    "day": "to_char(ledger_entries.created_at, 'YYYY-MM-DD')",
}
FIRST = datetime(2026, 3, 1, tzinfo=UTC)


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


def book(database: Database, number: random.Random, days: float, jobs: int) -> None:
    """Jobs with one to three entries each, some of them days apart."""
    ids = database.submit(f"job {place}" for place in range(jobs))
    for job_id in ids:
        team, user = number.choice([None, "a", "b"]), number.choice([None, "u", "v"])
        for place in range(number.choice([1, 1, 1, 2, 3])):
            at = FIRST + timedelta(days=number.random() * days)
            if number.random() < 0.2:
                at = at.replace(hour=0, minute=0, second=0, microsecond=0)
            attempt = new_id()
            database.rows(
                "INSERT INTO attempts (id, job_id, number, llm, provider, worker_id, started_at, outcome)"
                " VALUES (%s, %s, %s, 'x', 'mock', %s, now(), 'completed')",
                *(attempt, job_id, place, attempt),
            )
            database.rows(
                "INSERT INTO ledger_entries (attempt_id, job_id, tenant_id, llm, team, end_user, input_tokens,"
                " output_tokens, input_price, output_price, cost_usd, created_at)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, 1, 1, 1, %s, %s)",
                *(attempt, job_id, database.tenant_id, number.choice(["x", "y"]), team, user),
                *(number.randrange(100), Decimal(number.randrange(1000)) / 1_000_000, at),
            )


def plain_usage(database: Database, groups: list[str], start: datetime, end: datetime) -> list[dict[str, Any]]:
    """Usage straight from the ledger, as it is meant to be."""
    columns = "".join(f'{PLAIN[name]} AS "{name}", ' for name in groups)
    numbers = ", ".join(str(place + 1) for place in range(len(groups)))
    return database.rows(
        f"SELECT {columns} count(DISTINCT job_id) AS jobs, count(*) AS attempts,"
        " coalesce(sum(input_tokens), 0) AS input_tokens, coalesce(sum(output_tokens), 0) AS output_tokens,"
        " coalesce(sum(cost_usd), 0) AS cost_usd"
        " FROM ledger_entries LEFT JOIN api_keys k ON k.id = api_key_id"
        " WHERE ledger_entries.tenant_id = %s AND ledger_entries.created_at >= %s AND ledger_entries.created_at < %s"
        + (f" GROUP BY {numbers} ORDER BY {numbers}" if groups else ""),
        *(database.tenant_id, start, end),
    )


async def roll_up(engine: AsyncEngine, until: datetime, slice_s: float = 3600) -> None:
    while await fetch_all(engine, ROLL_UP, {"until": until, "slice_s": slice_s}):
        pass


@pytest.mark.parametrize("seed", range(3))
async def test_usage_is_exact_however_far_the_ledger_is_added_up(
    database: Database, engine: AsyncEngine, seed: int
) -> None:
    number = random.Random(seed)
    database.rows("SET timezone = 'UTC'")
    book(database, number, days=5, jobs=60)
    ends = [FIRST + timedelta(days=number.random() * 6 - 0.5) for _ in range(6)]
    midnights = [FIRST + timedelta(days=day) for day in (0, 1, 4, 6)]
    spans = [(start, end) for start in [*ends, *midnights] for end in [*ends, *midnights] if start < end]
    for rolled in (-1.0, 0.0, 1.0, 2.3, 2.31, 4.0, 6.0):
        await roll_up(engine, FIRST + timedelta(days=rolled))
        for start, end in number.sample(spans, 12):
            for groups in GROUPINGS:
                params = {"tenant_id": database.tenant_id, "start": start, "end": end}
                found = await fetch_all(engine, select_usage(groups), params)
                assert [dict(row) for row in found] == plain_usage(database, groups, start, end), (rolled, groups)
    assert database.value("SELECT sum(cost_usd) FROM spend_days") == database.value(
        "SELECT sum(cost_usd) FROM ledger_entries"
    )


async def test_an_entry_whose_transaction_is_open_is_added_up_after_it(database: Database, engine: AsyncEngine) -> None:
    settle = (
        "INSERT INTO ledger_entries (attempt_id, job_id, tenant_id, llm, input_tokens, output_tokens, input_price,"
        " output_price, cost_usd) SELECT gen_random_uuid(), gen_random_uuid(), %s, 'x', 1, 1, 1, 1, 1"
    )
    url = database.url.replace("+psycopg", "")
    tenant_id = database.tenant_id
    with psycopg.connect(url, application_name="headrace-worker") as worker:
        worker.execute(settle, [tenant_id])
        began = database.value("SELECT xact_start FROM pg_stat_activity WHERE application_name = 'headrace-worker'")
        closed = await fetch_one(engine, SELECT_CLOSED, {"margin_s": 0})
        assert closed is not None
        assert closed["until"] == began
        await roll_up(engine, closed["until"])
        assert database.value("SELECT count(*) FROM usage_days") == 0
    closed = await fetch_one(engine, SELECT_CLOSED, {"margin_s": 0})
    assert closed is not None
    await roll_up(engine, closed["until"])
    assert database.value("SELECT attempts FROM usage_days") == 1


async def test_two_processes_that_add_up_at_once_count_every_entry_once(
    database: Database, engine: AsyncEngine
) -> None:
    book(database, random.Random(7), days=1, jobs=20)
    url = database.url.replace("+psycopg", "")
    until = FIRST + timedelta(days=2)
    with psycopg.connect(url) as other:
        other.execute("SELECT FROM usage_progress FOR UPDATE")
        assert await fetch_all(engine, ROLL_UP, {"until": until, "slice_s": 86_400}) == []
    await roll_up(engine, until)
    await roll_up(engine, until)
    assert database.value("SELECT sum(attempts) FROM usage_days") == database.value(
        "SELECT count(*) FROM ledger_entries"
    )


@pytest.mark.parametrize("rolled", [-1, 2, 4, 30])
async def test_a_new_budget_starts_with_what_was_spent_however_far_the_ledger_is_added_up(
    database: Database, engine: AsyncEngine, rolled: int
) -> None:
    book(database, random.Random(3), days=5, jobs=30)
    await roll_up(engine, FIRST + timedelta(days=rolled))
    for scope, subject, condition in (
        ("tenant", None, "true"),
        ("team", "a", "team = 'a'"),
        ("user", "u", "end_user = 'u'"),
    ):
        params = {"id": new_id(), "tenant_id": database.tenant_id, "scope": scope, "subject": subject}
        params |= {"window": "total", "limit_usd": 1, "alert_at": Decimal("0.8")}
        budget = await fetch_one(engine, PUT_BUDGET, params)
        assert budget is not None
        await fetch_all(engine, PUT_PERIOD, {"id": budget["id"], "created": True})
        spent = database.value("SELECT spent_usd FROM budget_periods WHERE budget_id = %s", budget["id"])
        assert spent == database.value(f"SELECT sum(cost_usd) FROM ledger_entries WHERE {condition}")


@pytest.mark.parametrize("rolled", ["-infinity", "now() - interval '3 days'", "now()"])
async def test_an_anomaly_is_found_however_far_the_ledger_is_added_up(
    database: Database, engine: AsyncEngine, rolled: str
) -> None:
    database.rows(
        "INSERT INTO ledger_entries (attempt_id, job_id, tenant_id, llm, input_tokens, output_tokens, input_price,"
        " output_price, cost_usd, created_at) SELECT gen_random_uuid(), gen_random_uuid(), %s, 'x', 1, 1, 1, 1,"
        " CASE day WHEN 0 THEN 2.5 ELSE 1 END, now() - make_interval(days => day) FROM generate_series(0, 8) AS day",
        database.tenant_id,
    )
    until = database.value(f"SELECT greatest({rolled if 'now' in rolled else 'NULL'}, timestamptz 'epoch')")
    await roll_up(engine, until)
    assert len(await fetch_all(engine, RAISE_ANOMALIES)) == 1
    payload = database.value("SELECT payload FROM events")
    assert (payload["spent_usd"], payload["daily_average_usd"]) == ("2.500000", "1.000000")


async def test_sums_of_a_loaded_ledger_read_no_entry_that_is_added_up(database: Database, engine: AsyncEngine) -> None:
    database.rows(
        "INSERT INTO ledger_entries (attempt_id, job_id, tenant_id, llm, input_tokens, output_tokens, input_price,"
        " output_price, cost_usd, created_at) SELECT uuidv7(), uuidv7(), %s, 'x', 1, 1, 1, 1, 1,"
        " now() - make_interval(secs => n * 10) FROM generate_series(1, 100000) AS n",
        database.tenant_id,
    )
    await roll_up(engine, database.value("SELECT now()"), slice_s=7200)
    params = {"tenant_id": database.tenant_id, "start": FIRST, "end": datetime.now(UTC)}
    for statement, given in ((RAISE_ANOMALIES, {}), (select_usage([]), params)):
        assert rows_read(await explain(engine, statement, given), "ledger_entries") < 10
