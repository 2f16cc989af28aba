"""Whose turn it is: the relay's selection on a real Postgres."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text

from models.attempt import CLAIM
from models.database import create_engine, dump_json, fetch_all
from models.dispatch import DISPATCH, SELECT_WAITING, SELECT_WINDOWS, UNDISPATCH_STALE
from models.ids import new_id
from models.process import SELECT_BACKLOG
from tests.stack import Database
from workers.dispatcher import Dispatcher, dispatch_params
from workers.publisher import BrokerUnavailable, Message
from workers.settings import RelaySettings
from workers.windows import ALWAYS, Windows

pytestmark = pytest.mark.anyio


class Broker:
    """Keeps the ids that were published, in order, or is away."""

    def __init__(self) -> None:
        self.ids: list[UUID] = []
        self.is_away = False

    def publish(self, queue: str, messages: Sequence[Message]) -> None:
        if self.is_away:
            raise BrokerUnavailable("away")
        self.ids += [UUID(job_id) for message in messages for job_id in message.ids]


class Relay:
    """The dispatchers of one relay, with places given by hand."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.engine = create_engine(database.url, name="test")
        self.broker = Broker()
        settings = RelaySettings(database_url=database.url, redis_url="redis://unused", window_min=8)
        self.windows = Windows(self.engine, ["mock"])
        self.singles, self.rows = (
            Dispatcher(self.engine, self.broker, settings, self.windows, rows=rows)  # type: ignore[arg-type] # a fake
            for rows in (False, True)
        )

    async def dispatch(self, room: int, *, rows: bool = False) -> list[UUID]:
        """Publish up to ``room`` jobs; their ids in order."""
        (window,) = await self.windows.look()
        self.broker.ids = []
        await (self.rows if rows else self.singles).fill(window, room)
        return self.broker.ids

    def end(self, ids: Sequence[UUID]) -> None:
        """The jobs ran and completed."""
        started = "UPDATE jobs SET status = 'in_progress' WHERE id = ANY(%s)"
        self.database.rows(started, list(ids))
        ended = "UPDATE jobs SET status = 'completed', finished_at = now() WHERE id = ANY(%s)"
        self.database.rows(ended, list(ids))


@pytest.fixture
def tenant_id(database: Database) -> UUID:
    """The development tenant, made before there is an event loop."""
    return database.tenant_id


@pytest.fixture
async def relay(database: Database, tenant_id: UUID) -> AsyncIterator[Relay]:
    started = Relay(database)
    yield started
    await started.engine.dispose()


def new_tenant(database: Database, name: str, weight: int = 1) -> UUID:
    tenant_id = new_id()
    database.rows("INSERT INTO tenants (id, name, weight) VALUES (%s, %s, %s)", tenant_id, name, weight)
    return tenant_id


def tenants_of(database: Database, ids: Sequence[UUID]) -> dict[str, int]:
    rows = database.rows(
        "SELECT t.name, count(*) FROM jobs j JOIN tenants t ON t.id = j.tenant_id WHERE j.id = ANY(%s) GROUP BY 1",
        list(ids),
    )
    return {row["name"]: row["count"] for row in rows}


async def test_a_tenants_jobs_go_by_priority_then_age(database: Database, relay: Relay) -> None:
    low = database.submit(["a", "b"], priority=2)
    normal = database.submit(["c", "d"], priority=1)
    high = database.submit(["e"], priority=0)
    assert await relay.dispatch(4) == [*high, *normal, low[0]]
    assert await relay.dispatch(4) == [low[1]]
    assert await relay.dispatch(4) == []


async def test_tenants_share_a_queue_evenly_whatever_their_backlog(database: Database, relay: Relay) -> None:
    database.submit([str(n) for n in range(500)], priority=0)
    other = new_tenant(database, "other")
    database.submit(["x", "y", "z"], tenant_id=other, priority=2)
    assert tenants_of(database, await relay.dispatch(4)) == {"development": 2, "other": 2}


async def test_a_tenant_that_fills_the_window_waits_for_the_others(database: Database, relay: Relay) -> None:
    database.submit([str(n) for n in range(100)])
    assert len(await relay.dispatch(10)) == 10
    other = new_tenant(database, "other")
    database.submit([str(n) for n in range(100)], tenant_id=other)
    assert tenants_of(database, await relay.dispatch(10)) == {"other": 10}
    assert tenants_of(database, await relay.dispatch(10)) == {"development": 5, "other": 5}


async def test_weights_divide_a_queue(database: Database, relay: Relay) -> None:
    heavy = new_tenant(database, "heavy", weight=3)
    database.submit([str(n) for n in range(100)])
    database.submit([str(n) for n in range(100)], tenant_id=heavy)
    assert tenants_of(database, await relay.dispatch(40)) == {"development": 10, "heavy": 30}


async def test_what_tenants_with_few_jobs_leave_goes_to_the_others(database: Database, relay: Relay) -> None:
    database.submit([str(n) for n in range(100)])
    for name in ("one", "two", "three"):
        database.submit(["x"], tenant_id=new_tenant(database, name))
    served = tenants_of(database, await relay.dispatch(40))
    assert served == {"development": 37, "one": 1, "two": 1, "three": 1}


async def test_jobs_that_are_not_due_are_passed_over(database: Database, relay: Relay) -> None:
    later = database.submit(["later"], priority=0)
    database.rows("UPDATE jobs SET next_attempt_at = now() + interval '1 hour' WHERE id = ANY(%s)", later)
    now = database.submit(["now"], priority=2)
    assert await relay.dispatch(10) == now


async def test_a_retry_is_published_when_it_is_due_though_younger_jobs_went_before(
    database: Database, relay: Relay
) -> None:
    retried = database.submit(["retried"])
    database.rows("UPDATE jobs SET next_attempt_at = now() + interval '0.2 s' WHERE id = ANY(%s)", retried)
    assert await relay.dispatch(10) == []
    younger = database.submit(["younger"])
    assert await relay.dispatch(10) == younger
    database.rows("SELECT pg_sleep(0.3)")
    assert await relay.dispatch(10) == retried


async def test_a_job_whose_statement_committed_late_is_published(database: Database, relay: Relay) -> None:
    """It became due before jobs that were published already."""
    assert await relay.dispatch(10) == []
    late, early = database.submit(["late"]), database.submit(["early"])
    database.rows("UPDATE jobs SET next_attempt_at = now() + interval '1 hour' WHERE id = ANY(%s)", late)
    assert await relay.dispatch(10) == early
    database.rows("UPDATE jobs SET next_attempt_at = now() - interval '0.5 s' WHERE id = ANY(%s)", late)
    assert await relay.dispatch(10) == late


async def test_jobs_made_due_again_are_published_again(database: Database, relay: Relay) -> None:
    jobs = database.submit(["a", "b", "c"])
    assert await relay.dispatch(10) == jobs
    stale = {"queue": "mock", "stale_s": -1, "since": relay.windows.published_since("mock")}
    assert len(await fetch_all(relay.engine, UNDISPATCH_STALE, stale)) == 3
    relay.windows.forget(["mock"])
    assert await relay.dispatch(10) == jobs


async def test_what_the_broker_did_not_take_is_published_later(database: Database, relay: Relay) -> None:
    jobs = database.submit(["a", "b"])
    relay.broker.is_away = True
    with pytest.raises(BrokerUnavailable):
        await relay.singles.dispatch()
    relay.broker.is_away = False
    await relay.singles.dispatch()
    assert relay.broker.ids == jobs


async def test_a_tenants_single_jobs_go_before_its_rows_of_batches(database: Database, relay: Relay) -> None:
    low, high = database.submit(["row"], priority=5), database.submit(["row"], priority=3)
    single = database.submit(["single"], priority=2)
    assert await relay.dispatch(1, rows=True) == []
    assert await relay.dispatch(4) == single
    assert await relay.dispatch(4, rows=True) == [*high, *low]


async def test_rows_and_single_jobs_are_published_apart_and_leave_each_other_their_fair_share(
    database: Database, relay: Relay
) -> None:
    tenant_id = new_tenant(database, "batches")
    rows = database.submit(["row"] * 4, tenant_id=tenant_id)
    database.rows("UPDATE jobs SET priority = 4 WHERE id = ANY(%s)", list(rows))
    singles = database.submit(["single"] * 4, tenant_id=new_tenant(database, "singles"))
    published = await relay.dispatch(room=4)
    assert len(published) == 2
    assert set(published) < set(singles)
    assert set(await relay.dispatch(room=6, rows=True)) == set(rows)


@pytest.mark.parametrize("lane", ["singles", "rows"])
async def test_tenants_rotate_when_more_wait_than_there_are_places(database: Database, relay: Relay, lane: str) -> None:
    """Whatever the age and priority of their jobs; a newcomer is served within two rounds."""
    lowest = 3 if lane == "rows" else 0
    for number in range(40):
        tenant_id = new_tenant(database, f"t{number}")
        database.submit(["x"] * 30, tenant_id=tenant_id, priority=lowest + number % 3)
    served: Counter[str] = Counter()
    for step in range(40):
        if step == 15:
            newcomer = new_tenant(database, "newcomer")
            database.submit(["new"] * 3, tenant_id=newcomer, priority=lowest + 2)
        ids = await relay.dispatch(8, rows=lane == "rows")
        served += Counter(tenants_of(database, ids))
        relay.end(ids)
        if step == 14 + 2 * 41 // 8:
            assert served["newcomer"] >= 1
    assert served.total() == 320
    assert served["newcomer"] == 3
    others = [served[f"t{number}"] for number in range(40)]
    assert 7 <= min(others) <= max(others) <= 9


async def test_weights_keep_their_meaning_when_more_tenants_wait_than_there_are_places(
    database: Database, relay: Relay
) -> None:
    for number in range(20):
        database.submit(["x"] * 30, tenant_id=new_tenant(database, f"t{number}"))
    database.submit(["x"] * 100, tenant_id=new_tenant(database, "heavy", weight=3))
    served: Counter[str] = Counter()
    for _ in range(46):
        ids = await relay.dispatch(4)
        served += Counter(tenants_of(database, ids))
        relay.end(ids)
    others = [served[f"t{number}"] for number in range(20)]
    assert 7 <= min(others) <= max(others) <= 9
    assert 22 <= served["heavy"] <= 26


async def test_a_relay_that_starts_again_serves_nobody_twice_first(database: Database, relay: Relay) -> None:
    """Each relay rotates by itself: several of them, or one that starts again at each step, are fair in sum."""
    for number in range(12):
        database.submit(["x"] * 30, tenant_id=new_tenant(database, f"t{number}"))
    relays = [relay, Relay(database)]
    served: Counter[str] = Counter()
    for step in range(24):
        ids = await relays[step % 2].dispatch(4)
        served += Counter(tenants_of(database, ids))
        relay.end(ids)
    await relays[1].engine.dispose()
    assert len(served) == 12
    assert max(served.values()) <= 2 * min(served.values())


async def test_a_look_costs_what_is_published_and_not_what_waits(database: Database, relay: Relay) -> None:
    """On tables that were never analysed, so that Postgres knows nothing of them."""
    database.rows("ALTER TABLE jobs SET (autovacuum_enabled = false)")
    _load(database, "completed", 20_000, "now()")
    _load(database, "queued", 50_000, "NULL")
    published = database.submit(["published"] * 5, priority=0)
    database.rows("UPDATE jobs SET dispatched_at = now() WHERE id = ANY(%s)", published)
    window = {"queues": ["mock"], "published_since": [ALWAYS], "due_since": ["9999-01-01"]}
    assert await _pages(relay, SELECT_WINDOWS.text, window) < 60
    assert await _pages(relay, SELECT_WAITING.text, {"queue": "mock"}) < 60
    assert await _pages(relay, SELECT_BACKLOG.text, {"queues": ["mock"], "most": 10}) < 60
    stale = {"queue": "mock", "stale_s": 60, "since": ALWAYS}
    assert await _pages(relay, UNDISPATCH_STALE.text, stale) < 60
    (known,) = await relay.windows.look()
    assert known.published == {database.tenant_id: 5}


async def test_jobs_are_found_by_their_ids_beside_a_long_transaction(database: Database, relay: Relay) -> None:
    """It keeps the index entries of jobs that were queued, while Postgres believes that hardly any are."""
    database.rows("ALTER TABLE jobs SET (autovacuum_enabled = false)")
    worker_id = new_id()
    database.rows(
        "INSERT INTO processes (id, role, name, lease_expires_at) VALUES (%s, 'worker', 'w', now() + interval '1 h')",
        worker_id,
    )
    with psycopg.connect(database.url.replace("+psycopg", "")) as old:
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT count(*) FROM jobs")
        _load(database, "queued", 5000, "NULL")
        relay.end([row["id"] for row in database.rows("SELECT id FROM jobs")])
        database.rows("ANALYZE jobs")
        jobs = database.submit(["x"] * 20)
        (window,) = await relay.windows.look()
        chosen = dict(dispatch_params("mock", window.rotation.choose(20, {}), 20, rows=False))
        assert await _pages(relay, DISPATCH.text, chosen) < 1500
        claims = [{"job_id": job_id, "attempt_id": new_id()} for job_id in jobs]
        claim = {"rows": dump_json(claims), "worker_id": worker_id, "providers": "{}", "local_queues": []}
        assert await _pages(relay, CLAIM.text, claim) < 1500
        assert database.count("in_progress") == 20


def _load(database: Database, status: str, jobs: int, finished_at: str) -> None:
    database.rows(
        "INSERT INTO jobs (id, tenant_id, status, model, route, tier, queue, request, expires_at, dispatched_at,"
        " finished_at) SELECT uuidv7(), %s, %s, 'echo', '{echo}', 'mock', 'mock', '{}', now() + interval '1 day',"
        f" {finished_at}, {finished_at} FROM generate_series(1, %s)",
        database.tenant_id,
        status,
        jobs,
    )


async def _pages(relay: Relay, statement: str, params: Mapping[str, Any]) -> int:  # Any: what psycopg adapts
    """The pages that a statement reads, whichever plan Postgres makes."""
    explained = text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}")
    (row,) = await fetch_all(relay.engine, explained, params)
    plan = row["QUERY PLAN"][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
