"""What a worker reports to budgets: a failed attempt that cost something, and a job that goes on."""

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from api.local.valkey import EmbeddedValkey
from models.budget import PUT_BUDGET, PUT_PERIOD
from models.catalog import load_catalog
from models.database import create_engine, dump_json, fetch_all
from models.errors import FailureCode, JobFailure
from models.ids import new_id
from models.lifecycle import AttemptOutcome, JobStatus
from models.pricing import Price, Usage
from models.process import REGISTER
from models.reservation import RESERVE_JOBS
from models.wakeups import Wakeups
from tests.money import BALANCES
from tests.stack import Database, Stack
from workers.exchange import Exchange
from workers.execution import Claim, Ending, Report
from workers.lease import Lease

WORST = Decimal("0.01")
COST = Decimal("0.003")


class Bench:
    """An exchange with one claimed job that has reserved WORST."""

    def __init__(self, database: Database, exchange: Exchange, claim: Claim) -> None:
        self.database = database
        self.exchange = exchange
        self.claim = claim

    def balance(self) -> tuple[Decimal | int, Decimal | int]:
        """What is spent and what is reserved."""
        row = self.database.one(BALANCES)
        return row["spent"], row["reserved"]

    def failed(self) -> Report:
        """The report of an attempt that failed, cost COST and is to be tried again."""
        failure = JobFailure(FailureCode.TIMEOUT, "no answer")
        ending = Ending(AttemptOutcome.FAILED, JobStatus.QUEUED, failure=failure)
        return Report(self.claim, ending, Usage(1000, 1000), Price(Decimal(1), Decimal(2)), 10, None)


def with_bench(
    database: Database, stack: Stack, valkey: EmbeddedValkey, limit: Decimal, act: Callable[[Bench], Awaitable[None]]
) -> None:
    """Run ``act`` with a claimed job under a budget."""
    assert database.api_key  # made on a loop of its own

    async def run() -> None:
        engine = create_engine(database.url, name="test", pool_size=3)
        wakeups = Wakeups(valkey.url)
        stack.catalog({"echo": {}})
        catalog = load_catalog(Path(stack.settings["HEADRACE_CATALOG"]))
        lease = Lease(engine, role="worker", name="test", queues=["mock"], capacity=1, lease_s=600)
        identity = {"role": "worker", "name": "test", "queues": ["mock"], "capacity": 1, "lease_s": 600}
        await fetch_all(engine, REGISTER, {"id": lease.id, **identity})
        exchange = Exchange(engine, wakeups, catalog, lease)
        await put_budget(engine, database, limit)
        claim = await exchange.claim(await reserve(engine, database), is_row=False)
        assert isinstance(claim, Claim)
        await act(Bench(database, exchange, claim))
        await wakeups.close()
        await engine.dispose()

    asyncio.run(run())


async def put_budget(engine: AsyncEngine, database: Database, limit: Decimal) -> None:
    budget = {"id": new_id(), "tenant_id": database.tenant_id, "scope": "tenant", "subject": None}
    await fetch_all(engine, PUT_BUDGET, budget | {"window": "total", "limit_usd": limit, "alert_at": "0.8"})
    await fetch_all(engine, PUT_PERIOD, {"id": budget["id"], "created": True})


async def reserve(engine: AsyncEngine, database: Database) -> UUID:
    job = {
        "id": new_id(),
        "tenant_id": database.tenant_id,
        "kind": "generation",
        "priority": 1,
        "model": "auto",
        "route": ["echo"],
        "tier": "mock",
        "queue": "mock",
        "labels": {},
        "request": {"messages": [], "max_tokens": 1},
        "expires_in": 600,
        "reserved_usd": WORST,
    }
    (row,) = await fetch_all(engine, RESERVE_JOBS, {"rows": dump_json([job])})
    assert row["id"] == job["id"]
    return UUID(str(row["id"]))


def test_a_retry_reserves_again_once_however_often_it_is_reported(
    database: Database, stack: Stack, valkey: EmbeddedValkey
) -> None:
    async def act(bench: Bench) -> None:
        for _ in range(3):
            await bench.exchange.report(bench.failed())
            assert bench.balance() == (COST, WORST)
        assert database.one("SELECT status, cost_usd FROM jobs") == {"status": "queued", "cost_usd": COST}

    with_bench(database, stack, valkey, WORST + COST, act)


def test_a_job_whose_next_attempt_has_no_room_fails_and_releases_everything(
    database: Database, stack: Stack, valkey: EmbeddedValkey
) -> None:
    async def act(bench: Bench) -> None:
        await bench.exchange.report(bench.failed())
        assert bench.balance() == (COST, 0)
        job = database.one("SELECT status, error FROM jobs")
        assert (job["status"], job["error"]["code"], job["error"]["retryable"]) == ("failed", "budget_exceeded", False)

    with_bench(database, stack, valkey, WORST + COST - Decimal("0.000001"), act)


def test_a_report_of_a_job_that_was_cancelled_or_taken_away_gives_its_room_back(
    database: Database, stack: Stack, valkey: EmbeddedValkey
) -> None:
    async def act(bench: Bench) -> None:
        database.rows("UPDATE jobs SET cancel_requested_at = now()")
        await bench.exchange.report(bench.failed())
        assert bench.balance() == (COST, 0)
        assert database.count("cancelled") == 1

    with_bench(database, stack, valkey, 10 * WORST, act)


def test_a_late_report_books_its_cost_and_leaves_the_reservation_to_the_job(
    database: Database, stack: Stack, valkey: EmbeddedValkey
) -> None:
    async def act(bench: Bench) -> None:
        database.rows("UPDATE jobs SET status = 'queued', attempt_id = NULL, worker_id = NULL")
        await bench.exchange.report(bench.failed())
        assert bench.balance() == (COST, WORST)
        assert database.count("queued") == 1

    with_bench(database, stack, valkey, 10 * WORST, act)
