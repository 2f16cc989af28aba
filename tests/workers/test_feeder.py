"""The rows of many tenants' batches become jobs, on a real Postgres."""

from collections import Counter
from collections.abc import AsyncIterator
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text

from models.database import create_engine, fetch_all
from models.feeding import SELECT_FED
from tests.batches import new_batch
from tests.models.test_dispatch import new_tenant
from tests.stack import Database
from workers.feeder import Feeder
from workers.settings import RelaySettings

pytestmark = pytest.mark.anyio
BUFFER = 40


@pytest.fixture
def tenant_id(database: Database) -> UUID:
    """The development tenant, made before there is an event loop."""
    return database.tenant_id


@pytest.fixture
async def feeder(database: Database, tenant_id: UUID, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Feeder]:
    monkeypatch.setattr("workers.feeder._MOST_FEEDING_S", 60.0)  # whatever else the machine does
    engine = create_engine(database.url, name="test")
    settings = RelaySettings(database_url="postgres://", redis_url="redis://", window_min=BUFFER // 2)
    yield Feeder(engine, settings)
    await engine.dispose()


def unpublished(database: Database) -> Counter[str]:
    """How many jobs of each tenant wait to be published."""
    rows = database.rows(
        "SELECT t.name, count(*) FROM jobs j JOIN tenants t ON t.id = j.tenant_id"
        " WHERE status = 'queued' AND dispatched_at IS NULL GROUP BY 1"
    )
    return Counter({row["name"]: row["count"] for row in rows})


def finish(database: Database, where: str = "true") -> None:
    """All jobs that wait, or some of them, run and complete."""
    waiting = f"status = 'queued' AND {where}"
    database.rows(f"UPDATE jobs SET status = 'in_progress', dispatched_at = now() WHERE {waiting}")
    database.rows("UPDATE jobs SET status = 'completed', finished_at = now() WHERE status = 'in_progress'")


async def fill(feeder: Feeder, database: Database) -> Counter[str]:
    """Feed until the buffer is full."""
    for _ in range(20):
        await feeder.feed()
        if unpublished(database).total() >= BUFFER:
            break
    await feeder.feed()
    return unpublished(database)


async def test_the_tenants_of_a_queue_share_one_buffer(database: Database, feeder: Feeder) -> None:
    for number in range(8):
        new_batch(database, ["x"] * 50, tenant_id=new_tenant(database, f"t{number}"))
    assert await fill(feeder, database) == {f"t{number}": BUFFER // 8 for number in range(8)}


async def test_more_tenants_than_a_buffer_has_room_for_come_in_turn(database: Database, feeder: Feeder) -> None:
    fed: Counter[str] = Counter()
    for number in range(60):
        new_batch(database, ["x"] * 50, tenant_id=new_tenant(database, f"t{number}"))
    for _ in range(6):
        fed += (waiting := await fill(feeder, database))
        assert waiting.total() == BUFFER
        finish(database)
    assert set(fed.values()) == {4}


async def test_a_newcomer_is_fed_though_the_buffer_is_full(database: Database, feeder: Feeder) -> None:
    """Even if its rows are not published: other jobs of their tenant may go before them for ever."""
    new_batch(database, ["x"] * 100, tenant_id=new_tenant(database, "first"))
    await feeder.feed()
    assert unpublished(database) == {"first": BUFFER}
    new_batch(database, ["x"] * 100, tenant_id=new_tenant(database, "newcomer"))
    await feeder.feed()
    assert unpublished(database) == {"first": BUFFER, "newcomer": BUFFER // 2}


async def test_a_tenants_many_batches_come_in_turn(database: Database, feeder: Feeder) -> None:
    batches = [new_batch(database, ["x"] * 10) for _ in range(60)]
    for _ in range(3):
        assert (await fill(feeder, database)).total() == BUFFER
        finish(database)
    rows = database.rows("SELECT batch_id, count(*) FROM jobs GROUP BY 1")
    assert {row["batch_id"]: row["count"] for row in rows} == dict.fromkeys(batches, 2)


async def test_tenants_with_other_queues_beside_do_not_keep_one_out(database: Database, feeder: Feeder) -> None:
    way = {"model": "echo", "route": ["echo"], "tier": "mock", "queue": "mock", "routing": None}
    ways = [way, way | {"queue": "other"}]
    new_batch(database, ["x"] * 200, ways=ways, tenant_id=new_tenant(database, "both"))
    await feeder.feed()
    new_batch(database, ["x"] * 200, tenant_id=new_tenant(database, "one"))
    await feeder.feed()
    assert unpublished(database)["one"] == BUFFER // 2


async def test_a_look_costs_as_much_beside_a_long_transaction(database: Database, feeder: Feeder) -> None:
    """It keeps what was deleted or changed, and the index entries of every job that has passed since."""
    new_batch(database, ["x"] * 1000, tenant_id=new_tenant(database, "one"))
    with psycopg.connect(database.url.replace("+psycopg", "")) as old:
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT count(*) FROM jobs")
        await feeder.feed()
        first = await _pages(feeder)
        for _ in range(15):
            finish(database)
            await feeder.feed()
        assert database.count("completed") == 15 * BUFFER
        assert await _pages(feeder) < 2 * first


async def _pages(feeder: Feeder) -> int:
    """The pages that the feeder's next look at the batches reads."""
    await feeder._select_batches()  # so that it knows of the last jobs
    known = {"known": list(feeder._first_jobs), "first_jobs": list(feeder._first_jobs.values())}
    explained = text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {SELECT_FED.text}")
    (row,) = await fetch_all(feeder._engine, explained, known)
    plan = row["QUERY PLAN"][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
