"""Statements that change jobs lock in one order: whatever runs at the same time, Postgres finds no deadlock."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from time import monotonic
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.local.valkey import EmbeddedValkey
from models.batchcontrol import CANCEL_JOBS, LOCK_BATCH
from models.catalog import load_catalog
from models.database import create_engine, fetch_all, transaction
from models.dispatch import UNDISPATCH_STALE
from models.errors import FailureCode, JobFailure
from models.ids import new_id
from models.job import CANCEL_JOB
from models.lifecycle import AttemptOutcome, JobStatus
from models.pricing import Price, Usage
from models.process import DEREGISTER, HEARTBEAT, REGISTER
from models.wakeups import Wakeups
from tests.money import BALANCES
from tests.stack import Database, Stack
from tests.workers.test_exchange import put_budget
from workers.exchange import Exchange
from workers.execution import Claim, Ending, Report
from workers.lease import Lease
from workers.maintenance import Maintenance
from workers.rescue import Rescuer
from workers.windows import ALWAYS

SECONDS = 6.0
JOBS, BATCHES = 400, 3
EACH = Decimal("0.01")
RETRY = Ending(AttemptOutcome.FAILED, JobStatus.QUEUED, failure=JobFailure(FailureCode.TIMEOUT, "no answer"))
DONE = Ending(AttemptOutcome.COMPLETED, JobStatus.COMPLETED, result={"text": "x"})
NEW_BATCH = """
    INSERT INTO batches (id, tenant_id, status, endpoint, completion_window, expires_at, total)
    VALUES (%s, %s, 'in_progress', '/v1/chat/completions', '24h', now() + interval '1 day', 0)
"""
OF_BATCH = "UPDATE jobs SET batch_id = %s, batch_row = %s, batch_round = 0, budget_periods = %s WHERE id = %s"
PUBLISH = text("UPDATE jobs SET dispatched_at = now() - interval '1 s' WHERE id = :id AND status = 'queued'")
PASS_EXPIRY = text("UPDATE jobs SET expires_at = now() - interval '5 min' WHERE id = :id")


class Hammer:
    """Workers, rescuers and callers at the same few jobs."""

    def __init__(
        self,
        engine: AsyncEngine,
        exchanges: list[Exchange],
        rescuers: list[Rescuer],
        maintenance: Maintenance,
        jobs: list[UUID],
    ) -> None:
        self.engine = engine
        self.exchanges = exchanges
        self.rescuers = rescuers
        self.maintenance = maintenance
        self.jobs = jobs
        self.random = random.Random(7)
        self.unreported: list[Claim] = []

    def some(self, number: int) -> list[UUID]:
        return self.random.sample(self.jobs, number)

    async def work(self) -> None:
        """Claim, report in any order, give some back; each worker as several groups at a time."""
        exchange = self.random.choice(self.exchanges)
        found = await asyncio.gather(*(exchange.claim(job_id, is_row=False) for job_id in self.some(40)))
        claims = [claim for claim in found if isinstance(claim, Claim)]
        self.random.shuffle(claims)
        await asyncio.sleep(self.random.random() / 20)
        given_back = [claim.attempt_id for claim in claims[1:4]]
        await asyncio.gather(self.report(exchange, claims[4:]), exchange.release(given_back))
        self.unreported += claims[:1]
        if len(self.unreported) > 20:
            late, self.unreported = self.unreported[:10], self.unreported[10:]
            await self.report(exchange, late)

    async def report(self, exchange: Exchange, claims: list[Claim]) -> None:
        endings = [DONE if self.random.random() < 0.02 else RETRY for _ in claims]
        rows = [
            Report(claim, ending, Usage(10, 10), Price(Decimal(1), Decimal(2)), 10, None).as_row(exchange._catalog)
            for claim, ending in zip(claims, endings, strict=True)
        ]
        await asyncio.gather(*(exchange._flush_reports(part) for part in (rows[::2], rows[1::2]) if part))

    async def beat(self) -> None:
        for job_id in self.some(60):
            await fetch_all(self.engine, PUBLISH, {"id": job_id})
        for exchange in self.exchanges:
            params = {"id": exchange._lease.id, "lease_s": 600, "in_flight": 0, "models": None}
            await fetch_all(self.engine, HEARTBEAT, params | {"waiting": self.some(200)})
        await fetch_all(self.engine, UNDISPATCH_STALE, {"queue": "mock", "stale_s": 0, "since": ALWAYS})

    async def lose(self) -> None:
        """Take a worker's lease, and give it one again: what it held meanwhile is lost."""
        lease = self.random.choice(self.exchanges)._lease
        await fetch_all(self.engine, DEREGISTER, {"id": lease.id})
        await asyncio.sleep(0.4)
        identity = {"role": "worker", "name": "test", "queues": ["mock"], "capacity": 1, "lease_s": 600}
        await fetch_all(self.engine, REGISTER, {"id": lease.id, **identity})
        await asyncio.sleep(0.2)

    async def sweep(self) -> None:
        await asyncio.gather(*(rescuer.rescue() for rescuer in self.rescuers), self.maintenance.expire())
        await self.maintenance.fold()

    async def end(self) -> None:
        for job_id in self.some(2):
            await fetch_all(self.engine, PASS_EXPIRY, {"id": job_id})
        await asyncio.sleep(0.05)

    async def cancel(self, tenant_id: UUID, batch_id: UUID) -> None:
        params = {"tenant_id": tenant_id, "writer": new_id()}
        await fetch_all(self.engine, CANCEL_JOB, params | {"id": self.some(1)[0]})
        if self.random.random() < 0.1:
            async with transaction(self.engine) as connection:
                await connection.execute(LOCK_BATCH, {"id": batch_id, "tenant_id": None})
                await connection.execute(CANCEL_JOBS, {"id": batch_id, "writer": new_id()})
        await asyncio.sleep(0.02)


def test_no_deadlock_whatever_happens_to_the_same_jobs_at_once(
    database: Database, stack: Stack, valkey: EmbeddedValkey
) -> None:
    jobs = database.submit([f"{n}" for n in range(JOBS)], reserved_usd=EACH)
    batches = [new_id() for _ in range(BATCHES)]
    for batch_id in batches:
        database.rows(NEW_BATCH, batch_id, database.tenant_id)

    async def run() -> None:
        engine = create_engine(database.url, name="test", pool_size=20)
        wakeups = Wakeups(valkey.url)
        stack.catalog({"echo": {}})
        catalog = load_catalog(Path(stack.settings["HEADRACE_CATALOG"]))
        await put_budget(engine, database, Decimal(1_000_000))
        period = database.value("SELECT id FROM budget_periods")
        for number, job_id in enumerate(jobs):
            database.rows(OF_BATCH, batches[number % BATCHES], number, [period], job_id)
        database.rows("UPDATE budget_periods SET reserved_usd = %s", JOBS * EACH)
        exchanges, rescuers = [], []
        for _ in range(3):
            lease = Lease(engine, role="worker", name="test", queues=["mock"], capacity=1, lease_s=600)
            identity = {"role": "worker", "name": "test", "queues": ["mock"], "capacity": 1, "lease_s": 600}
            await fetch_all(engine, REGISTER, {"id": lease.id, **identity})
            exchanges.append(Exchange(engine, wakeups, catalog, lease))
            rescuers.append(
                Rescuer(
                    engine, wakeups, max_deliveries=1000, search_s=0, local_queues=(), writer=new_id(), catalog=catalog
                )
            )
        maintenance = Maintenance(engine, engine, wakeups, writer=new_id(), free=rescuers[0].free)
        hammer = Hammer(engine, exchanges, rescuers, maintenance, jobs)
        until = monotonic() + SECONDS

        async def again(act: Callable[[], Awaitable[None]]) -> int:
            times = 0
            while monotonic() < until:
                await act()
                times += 1
            return times

        acts = [*[hammer.work] * 6, *[hammer.beat] * 4, hammer.lose, hammer.sweep, hammer.sweep, hammer.end]
        acts += [lambda: hammer.cancel(database.tenant_id, batches[0])]
        times = await asyncio.gather(*map(again, acts))
        assert min(times) > 3
        await wakeups.close()
        await engine.dispose()

    asyncio.run(run())
    outcomes = {row["outcome"] for row in database.rows("SELECT DISTINCT outcome FROM attempts")}
    assert {"failed", "lost", "released"} <= outcomes
    assert "reversal" in {row["kind"] for row in database.rows("SELECT DISTINCT kind FROM ledger_entries")}
    assert {"cancelled", "expired"} <= {row["status"] for row in database.rows("SELECT DISTINCT status FROM jobs")}
    database.rows("SELECT pg_stat_force_next_flush()")
    assert database.value("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0
    assert_books_agree(database)


def assert_books_agree(database: Database) -> None:
    """The ledger, the jobs, the attempts, the batches' counts and the budget say the same of money and endings."""
    ledger = database.value("SELECT sum(cost_usd) FROM ledger_entries")
    assert ledger > 0
    for others in (
        "SELECT sum(cost_usd + coalesce(cost_rest_usd, 0)) FROM jobs",
        "SELECT sum(cost_usd) FROM attempts",
        "SELECT sum(cost_usd) FROM batch_counts",
    ):
        assert database.value(others) == ledger, others
    balance = database.one(BALANCES)
    assert (balance["spent"], balance["reserved"]) == (ledger, EACH * database.unfinished())
    for status in ("completed", "failed", "cancelled", "expired"):
        assert database.value(f"SELECT sum({status}) FROM batch_counts") == database.count(status)
