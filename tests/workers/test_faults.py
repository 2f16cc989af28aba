"""Faults, caused for real: whatever dies, every job completes once (promises 1 and 2)."""

import shutil
import signal
import time
from functools import partial
from pathlib import Path

import psycopg
import pytest

from api.local.postgres import EmbeddedPostgres
from api.local.valkey import EmbeddedValkey
from models.database import migrate
from tests.stack import Database, Stack, kill, reachable_directory, wait_until
from workers.celery import HeadraceCelery, celery_config
from workers.publisher import Message, Publisher

SLOW = {"echo": {"mock": {"latency_s": 0.3}}}


def prompts(number: int) -> list[str]:
    return [f"prompt {index}" for index in range(number)]


def some_completed(database: Database, number: int) -> bool:
    return database.count("completed") >= number


def test_jobs_of_a_killed_worker_are_run_by_another(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {"mock": {"latency_s": 2}}})
    stack.relay()
    victim = stack.worker(concurrency=4)
    database.submit(prompts(6))
    wait_until(lambda: database.count("in_progress") == 4)
    kill(victim)
    stack.worker(concurrency=8)
    database.wait_until_finished()
    database.assert_each_completed_once(6)
    assert database.value("SELECT count(*) FROM attempts WHERE outcome = 'lost'") == 4


def test_200_jobs_complete_once_while_workers_are_killed_three_times(stack: Stack, database: Database) -> None:
    stack.catalog(SLOW)
    stack.relay()
    workers = [stack.worker(), stack.worker()]
    database.submit(prompts(200))
    for _ in range(3):
        wait_until(lambda: database.count("in_progress") >= 8)
        kill(workers.pop(0))
        workers.append(stack.worker())
        time.sleep(1)
    database.wait_until_finished()
    database.assert_each_completed_once(200)
    assert database.value("SELECT count(*) FROM attempts WHERE outcome = 'lost'") >= 3


def test_a_killed_relay_loses_nothing(stack: Stack, database: Database) -> None:
    stack.catalog(SLOW)
    relay = stack.relay()
    stack.worker()
    database.submit(prompts(100))
    wait_until(lambda: database.count("completed") >= 10)
    kill(relay)
    stack.relay()
    database.wait_until_finished()
    database.assert_each_completed_once(100)


@pytest.mark.parametrize("emptied", [False, True], ids=["as it was", "empty"])
def test_a_broker_that_is_killed_loses_nothing_and_no_worker(
    stack: Stack, database: Database, valkey: EmbeddedValkey, emptied: bool
) -> None:
    stack.catalog(SLOW)
    stack.relay()
    worker = stack.worker()
    database.submit(prompts(150))
    for done in (10, 60):
        wait_until(partial(some_completed, database, done))
        valkey.kill()
        if emptied:
            valkey.wipe()
        time.sleep(0.5)
        valkey.start()
    database.wait_until_finished()
    database.assert_each_completed_once(150)
    assert worker.poll() is None


def test_a_killed_postgres_loses_nothing(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    directory = reachable_directory()
    postgres = EmbeddedPostgres(directory, first_port=0)
    url = postgres.start()
    try:
        migrate(url)
        with Database(url) as database, Stack(url, valkey.url, tmp_path) as stack:
            stack.catalog(SLOW)
            stack.relay()
            stack.worker()
            database.submit(prompts(100))
            wait_until(lambda: database.count("completed") >= 10)
            postgres.kill()
            time.sleep(1)
            postgres.start()
            database.wait_until_finished()
            database.assert_each_completed_once(100)
            assert database.value("SELECT count(*) FROM attempts") <= 108
    finally:
        postgres.stop()
        shutil.rmtree(directory)


def sender(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> HeadraceCelery:
    """An app that sends to the stack's broker."""
    for name, value in stack.settings.items():
        monkeypatch.setenv(name, value)
    app = HeadraceCelery("test")
    app.add_defaults(celery_config)
    return app


def test_a_message_that_comes_three_times_runs_its_jobs_once(
    stack: Stack, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.catalog({"echo": {}})
    stack.worker()
    ids = [job_id.hex for job_id in database.submit(prompts(20))]
    with sender(stack, monkeypatch) as app:
        Publisher(app).publish("mock", [Message(ids, rows=False)] * 3)
        database.wait_until_finished()
        wait_until(lambda: Publisher(app).depth("mock") == 0)
    database.assert_each_completed_once(20)
    assert database.value("SELECT count(*) FROM attempts") == 20


def test_a_message_that_comes_before_its_workers_lease_is_not_passed_over(
    stack: Stack, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No relay is there that would publish the jobs again."""
    stack.catalog({"echo": {}})
    ids = [job_id.hex for job_id in database.submit(prompts(20))]
    app = sender(stack, monkeypatch)
    with app, psycopg.connect(database.url.replace("+psycopg", "")) as blocker:
        blocker.execute("LOCK TABLE processes IN EXCLUSIVE MODE")
        publisher = Publisher(app)
        publisher.publish("mock", [Message(ids, rows=False)])
        worker = stack.worker()
        blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%processes%%'"
        wait_until(lambda: database.value(blocked) > 0)
        assert (database.count("queued"), worker.poll()) == (20, None)
        blocker.rollback()
        database.wait_until_finished()
    database.assert_each_completed_once(20)


def test_a_worker_that_wakes_after_its_lease_cannot_finish(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {"mock": {"latency_s": 1.5}}})
    stack.relay()
    paused = stack.worker(concurrency=4)
    database.submit(prompts(4))
    wait_until(lambda: database.count("in_progress") == 4)
    paused.send_signal(signal.SIGSTOP)
    stack.worker(concurrency=4)
    wait_until(lambda: database.count("completed") == 4)
    finished = database.rows("SELECT id, finished_at FROM jobs ORDER BY id")
    paused.send_signal(signal.SIGCONT)
    late = "SELECT count(*) FROM attempts WHERE outcome = 'lost' AND duration_ms IS NOT NULL"
    wait_until(lambda: database.value(late) == 4)
    assert database.rows("SELECT id, finished_at FROM jobs ORDER BY id") == finished
    database.assert_each_completed_once(4)


def test_two_relays_share_the_work(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {"mock": {"latency_s": 0.01}}})
    stack.relay()
    stack.relay()
    stack.worker(concurrency=16)
    stack.worker(concurrency=16)
    database.submit(prompts(1000))
    database.wait_until_finished()
    database.assert_each_completed_once(1000)
    assert database.value("SELECT count(*) FROM attempts") == 1000


def test_a_job_that_kills_its_workers_fails_after_max_deliveries(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {"pool": "remote", "mock": {"latency_s": 60}}})
    stack.settings["HEADRACE_MAX_DELIVERIES"] = "2"
    stack.relay()
    database.submit(["poison"])
    for _ in range(2):
        worker = stack.worker()
        wait_until(lambda: database.count("in_progress") == 1)
        kill(worker)
        wait_until(lambda: database.count("in_progress") == 0)
    job = database.one("SELECT status, error, rescues FROM jobs")
    assert (job["status"], job["error"]["code"], job["rescues"]) == (
        "failed",
        "max_deliveries",
        2,
    )


def test_a_worker_told_to_stop_gives_its_jobs_back_at_once(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {"mock": {"latency_s": 4}}})
    stack.relay()
    leaving = stack.worker(concurrency=4)
    database.submit(prompts(4))
    wait_until(lambda: database.count("in_progress") == 4)
    leaving.terminate()
    leaving.wait(timeout=20)
    released = "SELECT count(*) FROM attempts WHERE outcome = 'released'"
    assert (database.count("queued"), database.value(released)) == (4, 4)
    assert database.value("SELECT count(*) FROM processes WHERE role = 'worker'") == 0
    stack.worker(concurrency=4)
    database.wait_until_finished()
    database.assert_each_completed_once(4)
