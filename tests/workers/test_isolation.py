"""A job that kills its processes harms no other: after two deaths in company it runs alone."""

import asyncio
import os
import sys
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from api.local.supervisor import ProcessSpec, Supervisor
from models.database import create_engine
from models.ids import new_id
from tests.stack import ROOT, Database, Stack, kill, wait_until
from tests.workers.test_local_models import LOCAL
from tests.workers.test_stalls import WORKER
from workers.exchange import Suspect
from workers.isolation import Isolation


def new_tenant(database: Database) -> UUID:
    tenant_id = new_id()
    database.rows("INSERT INTO tenants (id, name) VALUES (%s, %s)", tenant_id, tenant_id.hex)
    return tenant_id


def test_a_poison_job_ends_alone_and_the_others_complete(stack: Stack, database: Database) -> None:
    stack.settings["HEADRACE_MAX_DELIVERIES"] = "2"
    stack.catalog({"poison": {"mock": {"fault": "crash", "latency_s": 1}}, "echo": {"mock": {"latency_s": 2}}})
    (poison,) = database.submit(["poison"], route=["poison"], tenant_id=new_tenant(database))
    honest = database.submit([f"honest {n}" for n in range(10)])
    stack.relay()
    worker = ProcessSpec(
        name="worker", argv=[sys.executable, *WORKER, "-c", "16"], env=os.environ | stack.settings, cwd=ROOT
    )
    with Supervisor(stack.directory / "logs") as supervisor:
        supervisor.start(worker)
        supervisor.run_during(lambda: wait_until(lambda: database.unfinished() == 0, 120))
    deaths = (stack.directory / "logs" / "headrace.log").read_text().count("worker ended")
    assert 1 <= deaths <= 2
    assert database.value("SELECT count(*) FROM jobs WHERE status = 'completed' AND id = ANY(%s)", honest) == 10
    failed = database.one("SELECT status, error ->> 'code' AS code, rescues FROM jobs WHERE id = %s", poison)
    assert failed == {"status": "failed", "code": "max_deliveries", "rescues": 4}


def test_a_suspect_is_given_back_when_its_worker_is_killed(stack: Stack, database: Database) -> None:
    """Its spare process outlives the worker for long enough; no death counts against the job."""
    stack.catalog({"echo": {"mock": {"latency_s": 4}}})
    stack.relay()
    victim = stack.worker()
    database.submit(["honest"])
    database.rows("UPDATE jobs SET rescues = 2")
    running = "SELECT count(*) FROM jobs j JOIN processes p ON p.id = j.worker_id WHERE p.role = 'isolated'"
    wait_until(lambda: database.value(running) == 1)
    kill(victim)
    wait_until(lambda: database.value("SELECT count(*) FROM attempts WHERE outcome = 'released'") == 1)
    stack.worker()
    database.wait_until_finished()
    database.assert_each_completed_once(1)
    assert database.value("SELECT rescues FROM jobs") == 2


def test_a_suspect_of_a_local_model_is_answered_by_the_spare_process(stack: Stack, database: Database) -> None:
    stack.catalog({"local": LOCAL})
    stack.relay()
    stack.worker()
    database.submit(["Name a colour.", "Name an animal."], route=["local"])
    database.rows("UPDATE jobs SET rescues = 2")
    database.wait_until_finished()
    assert database.count("completed") == 2
    where = "SELECT role, models FROM processes WHERE models <> '[]'"
    wait_until(lambda: [row["role"] for row in database.rows(where)] == ["isolated"])


def test_a_suspect_is_cancelled_and_its_worker_stops(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {"mock": {"latency_s": 600}}})
    stack.relay()
    worker = stack.worker()
    database.submit(["long"])
    database.rows("UPDATE jobs SET rescues = 2")
    wait_until(lambda: database.count("in_progress") == 1)
    database.rows("UPDATE jobs SET cancel_requested_at = now()")
    wait_until(lambda: database.count("cancelled") == 1)
    database.submit(["another"])
    database.rows("UPDATE jobs SET rescues = 2 WHERE status = 'queued'")
    wait_until(lambda: database.count("in_progress") == 1)
    worker.terminate()
    worker.wait(timeout=30)
    assert database.count("queued") == 1
    assert database.value("SELECT count(*) FROM processes WHERE role <> 'relay'") == 0


class _Recorder(Isolation):
    """Runs nothing, and notes the order."""

    def __init__(self, engine: AsyncEngine, expected: int) -> None:
        super().__init__(engine, worker="test", capacity=4, stop_s=1)
        self.ran: list[UUID] = []
        self.all_ran = asyncio.Event()
        self._expected = expected

    async def _run(self, job_id: UUID) -> None:
        self.ran.append(job_id)
        if len(self.ran) == self._expected:
            self.all_ran.set()


def test_tenants_take_turns_and_one_too_many_is_put_off(database: Database) -> None:
    one, other = new_tenant(database), new_tenant(database)
    jobs = database.submit(["a", "b", "c"], tenant_id=one)
    (late,) = database.submit(["d"], tenant_id=other)
    database.rows("UPDATE jobs SET dispatched_at = now()")

    async def run() -> None:
        engine = create_engine(database.url, name="test")
        isolation = _Recorder(engine, expected=3)
        for job_id in [*jobs, jobs[0]]:
            await isolation.take(Suspect(job_id, one))
        await isolation.take(Suspect(late, other))
        put_off = "SELECT id FROM jobs WHERE dispatched_at IS NULL AND next_attempt_at > now()"
        assert database.value(put_off) == jobs[2]
        keeping = asyncio.create_task(isolation.keep())
        await isolation.all_ran.wait()
        keeping.cancel()
        assert isolation.ran == [jobs[0], late, jobs[1]]
        await engine.dispose()

    asyncio.run(run())
