"""What a lost attempt may have cost is booked as an estimate, and a late report replaces it."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from api.local.valkey import EmbeddedValkey
from models.catalog import Catalog, load_catalog
from models.database import create_engine, fetch_all
from models.estimates import worst_usage
from models.ids import new_id
from models.ledger import select_usage
from models.lifecycle import AttemptOutcome, JobStatus
from models.pricing import Price, Usage, cost_of
from models.process import REGISTER
from models.wakeups import Wakeups
from tests.money import BALANCES, assert_no_drift, put_budget, worst_case
from tests.stack import Database, Stack, kill, wait_until
from tests.workers.test_exchange import WORST, reserve
from tests.workers.test_exchange import put_budget as put_budget_by_hand
from workers.exchange import Exchange
from workers.execution import Claim, Ending, Report
from workers.lease import Lease
from workers.maintenance import Maintenance
from workers.rescue import Rescuer

PRICE = Price(Decimal(1), Decimal(2))
MOST = cost_of(worst_usage({"messages": [], "max_tokens": 1}), PRICE)
"""The worst case of the job that ``reserve`` makes, which has reserved WORST."""
USED = Usage(100, 1)
COST = cost_of(USED, PRICE)
REQUEST = {"prompt": "Say hello.", "model": "echo", "max_tokens": 16}


class Ground:
    """A worker's exchange, a relay's rescuer and maintenance, and a job that the worker has claimed under a budget."""

    def __init__(
        self,
        database: Database,
        engine: AsyncEngine,
        exchange: Exchange,
        rescuer: Rescuer,
        maintenance: Maintenance,
        claim: Claim,
    ) -> None:
        self.database = database
        self.engine = engine
        self.exchange = exchange
        self.rescuer = rescuer
        self.maintenance = maintenance
        self.claim = claim

    def lose_the_worker(self) -> None:
        self.database.rows("DELETE FROM processes")

    def report(self, usage: Usage = USED, status: JobStatus = JobStatus.COMPLETED) -> Report:
        outcome = AttemptOutcome.COMPLETED if status is JobStatus.COMPLETED else AttemptOutcome.RELEASED
        result = {"text": "late"} if status is JobStatus.COMPLETED else None
        return Report(self.claim, Ending(outcome, status, result=result), usage, PRICE, 10, None)

    def balance(self) -> tuple[object, ...]:
        row = self.database.one(BALANCES)
        return row["spent"], row["reserved"]

    def ledger(self) -> list[object]:
        rows = self.database.rows("SELECT kind, cost_usd FROM ledger_entries ORDER BY created_at, kind")
        return [(row["kind"], row["cost_usd"]) for row in rows]

    def job(self) -> tuple[object, ...]:
        row = self.database.one("SELECT status, cost_usd + coalesce(cost_rest_usd, 0) AS cost FROM jobs")
        return row["status"], row["cost"]


def with_ground(
    database: Database,
    stack: Stack,
    valkey: EmbeddedValkey,
    act: Callable[[Ground], Awaitable[None]],
    *,
    limit: Decimal = Decimal(1),
    llms: dict[str, dict[str, object]] | None = None,
) -> None:
    """Run ``act`` on a ground; ``llms``: those that the relay's catalogue has, if not the worker's."""
    assert database.api_key  # made on a loop of its own

    def catalog_of(llms: dict[str, dict[str, object]]) -> Catalog:
        stack.catalog(llms)
        return load_catalog(Path(stack.settings["HEADRACE_CATALOG"]))

    async def run() -> None:
        engine = create_engine(database.url, name="test", pool_size=3)
        wakeups = Wakeups(valkey.url)
        lease = Lease(engine, role="worker", name="test", queues=["mock"], capacity=1, lease_s=600)
        identity = {"role": "worker", "name": "test", "queues": ["mock"], "capacity": 1, "lease_s": 600}
        await fetch_all(engine, REGISTER, {"id": lease.id, **identity})
        exchange = Exchange(engine, wakeups, catalog_of({"echo": {}}), lease)
        rescuer = Rescuer(
            engine,
            wakeups,
            max_deliveries=3,
            search_s=0,
            local_queues=(),
            writer=new_id(),
            catalog=catalog_of(llms or {"echo": {}}),
        )
        await put_budget_by_hand(engine, database, limit)
        claim = await exchange.claim(await reserve(engine, database), is_row=False)
        assert isinstance(claim, Claim)
        maintenance = Maintenance(engine, engine, wakeups, writer=new_id(), free=rescuer.free)
        await act(Ground(database, engine, exchange, rescuer, maintenance, claim))
        await wakeups.close()
        await engine.dispose()

    asyncio.run(run())


def test_a_lost_attempt_is_booked_at_its_worst_case_and_a_late_report_replaces_it(
    database: Database, stack: Stack, valkey: EmbeddedValkey
) -> None:
    async def act(ground: Ground) -> None:
        ground.lose_the_worker()
        for _ in range(2):
            await ground.rescuer.rescue()
            assert ground.job() == ("queued", MOST)
            assert ground.balance() == (MOST, WORST)
            assert ground.ledger() == [("estimate", MOST)]
        attempt = database.one("SELECT outcome, usage_estimated, cost_usd, input_tokens, output_tokens FROM attempts")
        assert tuple(attempt.values()) == ("lost", True, MOST, 128, 1)
        for _ in range(2):
            await ground.exchange.report(ground.report())
            assert ground.job() == ("queued", COST)
            assert ground.balance() == (COST, WORST)
            assert ground.ledger() == [("estimate", MOST), ("reversal", -MOST), ("usage", COST)]
        attempt = database.one("SELECT outcome, usage_estimated, cost_usd, estimated_usd FROM attempts")
        assert tuple(attempt.values()) == ("lost", False, COST, MOST)
        job = database.one("SELECT input_tokens, output_tokens, attempt_count, rescues FROM jobs")
        assert tuple(job.values()) == (100, 1, 1, 1)

    with_ground(database, stack, valkey, act)


def test_an_estimate_and_its_reversal_count_as_one_attempt_of_the_usage(
    database: Database, stack: Stack, valkey: EmbeddedValkey
) -> None:
    async def act(ground: Ground) -> None:
        span = {"tenant_id": database.tenant_id, "start": "2000-01-01", "end": "2100-01-01"}
        ground.lose_the_worker()
        await ground.rescuer.rescue()
        (usage,) = await fetch_all(ground.engine, select_usage(()), span)
        assert list(usage.values()) == [1, 1, 128, 1, MOST]
        await ground.exchange.report(ground.report())
        (usage,) = await fetch_all(ground.engine, select_usage(()), span)
        assert list(usage.values()) == [1, 1, 100, 1, COST]

    with_ground(database, stack, valkey, act)


def test_a_late_report_of_an_attempt_that_called_nobody_takes_the_whole_estimate_back(
    database: Database, stack: Stack, valkey: EmbeddedValkey
) -> None:
    async def act(ground: Ground) -> None:
        ground.lose_the_worker()
        await ground.rescuer.rescue()
        await ground.exchange.report(ground.report(Usage(), JobStatus.QUEUED))
        assert ground.ledger() == [("estimate", MOST), ("reversal", -MOST)]
        assert (ground.job(), ground.balance()) == (("queued", 0), (0, WORST))

    with_ground(database, stack, valkey, act)


def test_a_report_that_comes_between_the_estimate_and_the_rescue_ends_its_job(
    database: Database, stack: Stack, valkey: EmbeddedValkey
) -> None:
    async def act(ground: Ground) -> None:
        ground.lose_the_worker()
        assert await ground.rescuer._lost.book(orphans=True) == 1
        assert (ground.job(), ground.balance()) == (("in_progress", MOST), (MOST, WORST))
        await ground.exchange.report(ground.report())
        assert (ground.job(), ground.balance()) == (("completed", COST), (COST, 0))
        assert database.value("SELECT outcome FROM attempts") == "completed"

    with_ground(database, stack, valkey, act)


def test_a_job_whose_budget_has_no_room_for_another_attempt_ends_and_releases_the_rest(
    database: Database, stack: Stack, valkey: EmbeddedValkey
) -> None:
    async def act(ground: Ground) -> None:
        ground.lose_the_worker()
        await ground.rescuer.rescue()
        assert (ground.job(), ground.balance()) == (("failed", MOST), (MOST, 0))
        assert database.value("SELECT error ->> 'code' FROM jobs") == "budget_exceeded"
        assert database.value("SELECT outcome FROM attempts") == "lost"
        await ground.exchange.report(ground.report())
        assert (ground.job(), ground.balance()) == (("failed", COST), (COST, 0))

    with_ground(database, stack, valkey, act, limit=WORST)


@pytest.mark.parametrize(("column", "status"), [("cancel_requested_at", "cancelled"), ("expires_at", "expired")])
@pytest.mark.parametrize("limit", [WORST, Decimal(1)])
def test_a_job_that_ends_with_its_worker_is_booked_and_releases_its_reservation(
    database: Database, stack: Stack, valkey: EmbeddedValkey, column: str, status: str, limit: Decimal
) -> None:
    async def act(ground: Ground) -> None:
        database.rows(f"UPDATE jobs SET {column} = now()")
        ground.lose_the_worker()
        await ground.rescuer.rescue()
        assert (ground.job(), ground.balance()) == ((status, MOST), (MOST, 0))

    with_ground(database, stack, valkey, act, limit=limit)


def test_a_job_that_expires_over_its_workers_head_is_booked_too(
    database: Database, stack: Stack, valkey: EmbeddedValkey
) -> None:
    async def act(ground: Ground) -> None:
        database.rows("UPDATE jobs SET expires_at = now() - interval '30 s'")
        await ground.rescuer.rescue()
        await ground.maintenance.expire()
        assert ground.job() == ("in_progress", 0)
        database.rows("UPDATE jobs SET expires_at = now() - interval '61 s'")
        await ground.maintenance.expire()
        assert ground.job() == ("in_progress", 0)  # not before its worst case is booked
        await ground.rescuer.rescue()
        await ground.maintenance.expire()
        assert (ground.job(), ground.balance()) == (("expired", MOST), (MOST, 0))
        await ground.exchange.report(ground.report())
        assert (ground.job(), ground.balance()) == (("expired", COST), (COST, 0))

    with_ground(database, stack, valkey, act)


def test_an_llm_that_costs_nothing_is_rescued_without_an_estimate(
    database: Database, stack: Stack, valkey: EmbeddedValkey
) -> None:
    async def act(ground: Ground) -> None:
        ground.lose_the_worker()
        await ground.rescuer.rescue()
        assert (ground.job(), ground.balance(), ground.ledger()) == (("queued", 0), (0, WORST), [])

    with_ground(database, stack, valkey, act, llms={"echo": {"input_price": "0", "output_price": "0"}})


def test_an_llm_that_left_the_catalogue_is_booked_at_the_reservation(
    database: Database, stack: Stack, valkey: EmbeddedValkey
) -> None:
    async def act(ground: Ground) -> None:
        ground.lose_the_worker()
        await ground.rescuer.rescue()
        assert (ground.job(), ground.balance()) == (("queued", WORST), (WORST, WORST))

    with_ground(database, stack, valkey, act, llms={"other": {}})


def test_an_estimate_that_postgres_refuses_does_not_keep_the_job_from_its_rescue(
    database: Database, stack: Stack, valkey: EmbeddedValkey
) -> None:
    async def act(ground: Ground) -> None:
        database.rows("ALTER TABLE ledger_entries ADD CHECK (kind <> 'estimate')")
        ground.lose_the_worker()
        await ground.rescuer.rescue()
        assert (ground.job(), ground.balance()) == (("queued", 0), (0, WORST))

    with_ground(database, stack, valkey, act)


def test_the_worst_case_of_a_request_is_what_is_reserved_for_it(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {}})
    _, url = stack.api()
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "string", "title": "grüße"}}}
    for request in (REQUEST, REQUEST | {"response_format": form}):
        reserved = worst_case(database, url, database.api_key, **request)
        stored = database.value("SELECT request FROM jobs ORDER BY id DESC LIMIT 1")
        assert cost_of(worst_usage(stored), PRICE) == reserved


def test_a_worker_killed_in_a_call_is_booked_and_its_job_completes_elsewhere(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {"mock": {"latency_s": 2}}})
    _, url = stack.api()
    each = worst_case(database, url, database.api_key, **REQUEST)
    put_budget(url, database.api_key, 10 * each)
    stack.relay()
    victim = stack.worker()
    headers = {"authorization": f"Bearer {database.api_key}"}
    httpx.post(f"{url}/v1/jobs", json=REQUEST, headers=headers, timeout=30)
    wait_until(lambda: database.count("in_progress") == 1)
    kill(victim)
    stack.worker()
    wait_until(lambda: database.count("completed") == 1)
    assert database.value("SELECT cost_usd FROM ledger_entries WHERE kind = 'estimate'") == each
    assert_no_drift(database)
    (shown,) = httpx.get(f"{url}/v1/jobs?status=completed", headers=headers, timeout=30).json()["data"]
    assert [attempt["usage"].get("estimated") for attempt in shown["attempts"]] == [True, None]


def test_a_worker_that_was_given_up_and_wakes_again_replaces_its_estimate(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {"mock": {"latency_s": 1}}})
    _, url = stack.api()
    put_budget(url, database.api_key, 1)
    stack.relay()
    sleeper = stack.worker()
    headers = {"authorization": f"Bearer {database.api_key}"}
    httpx.post(f"{url}/v1/jobs", json=REQUEST, headers=headers, timeout=30)
    wait_until(lambda: database.count("in_progress") == 1)
    os.kill(sleeper.pid, signal.SIGSTOP)
    wait_until(lambda: database.value("SELECT count(*) FROM ledger_entries WHERE kind = 'estimate'") == 1)
    os.kill(sleeper.pid, signal.SIGCONT)
    wait_until(lambda: database.value("SELECT count(*) FROM ledger_entries WHERE kind = 'reversal'") == 1)
    database.wait_until_finished()
    assert database.count("completed") == 1
    assert database.value("SELECT count(*) FROM attempts WHERE usage_estimated") == 0
    assert_no_drift(database)
