"""A process that cannot use Postgres takes nothing new, keeps what it runs, and goes on when it can."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from api.local.postgres import EmbeddedPostgres
from api.local.valkey import EmbeddedValkey
from models.database import migrate
from tests.proxy import Proxy
from tests.stack import Database, Stack, reachable_directory, wait_until
from tests.workers.test_faults import prompts, sender
from workers.publisher import Message, Publisher


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    """The way to the test's database, to be cut."""
    with Proxy(database_url) as opened:
        yield opened


def log_of(stack: Stack, kind: str) -> str:
    return "\n".join(path.read_text(errors="replace") for path in stack.directory.glob(f"{kind}*.log"))


def processes(database: Database) -> set[str]:
    return {row["id"].hex for row in database.rows("SELECT id FROM processes")}


def test_jobs_go_to_the_other_worker_while_one_is_cut_off(stack: Stack, database: Database, proxy: Proxy) -> None:
    """A lease of a minute: nothing is published again or taken back while the test runs."""
    stack.settings["HEADRACE_LEASE_S"] = "60"
    stack.catalog({"echo": {"mock": {"latency_s": 0.02}}, "slow": {"mock": {"latency_s": 5}}})
    stack.relay()
    direct = stack.settings["HEADRACE_DATABASE_URL"]
    stack.settings["HEADRACE_DATABASE_URL"] = proxy.url
    stack.worker(concurrency=4)
    database.submit(prompts(2), route=["slow"])
    wait_until(lambda: database.count("in_progress") == 2)
    proxy.close()
    stack.settings["HEADRACE_DATABASE_URL"] = direct
    stack.worker(concurrency=4)
    database.submit(prompts(400))
    wait_until(lambda: database.count("completed") == 400)
    wait_until(lambda: "reports.wait" in log_of(stack, "worker"))
    assert database.count("in_progress") == 2
    proxy.open()
    database.wait_until_finished()
    database.assert_each_completed_once(402)
    assert database.value("SELECT count(*) FROM attempts") == 402
    assert "relay.republished" not in log_of(stack, "relay")


def test_a_worker_that_starts_without_postgres_leaves_messages_with_the_broker(
    stack: Stack, database: Database, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No relay is there that would publish the jobs again."""
    stack.catalog({"echo": {}})
    stack.settings["HEADRACE_DATABASE_URL"] = proxy.url
    proxy.close()
    ids = [job_id.hex for job_id in database.submit(prompts(20))]
    with sender(stack, monkeypatch) as app:
        publisher = Publisher(app)
        publisher.publish("mock", [Message(ids[:10], rows=False), Message(ids[10:], rows=False)])
        stack.worker()
        wait_until(lambda: "consuming.stopped" in log_of(stack, "worker"))
        wait_until(lambda: publisher.depth("mock") == 2)
        proxy.open()
        database.wait_until_finished()
    database.assert_each_completed_once(20)


def test_a_new_connection_to_the_broker_does_not_start_consuming(
    stack: Stack, database: Database, proxy: Proxy, valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker without Postgres loses the broker too, and gets it back first."""
    stack.catalog({"echo": {}})
    stack.settings["HEADRACE_DATABASE_URL"] = proxy.url
    stack.worker()
    wait_until(lambda: len(processes(database)) == 1)
    proxy.close()
    wait_until(lambda: "consuming.stopped" in log_of(stack, "worker"))
    valkey.kill()
    valkey.start()
    ids = [job_id.hex for job_id in database.submit(prompts(5))]
    with sender(stack, monkeypatch) as app:
        publisher = Publisher(app)
        publisher.publish("mock", [Message(ids, rows=False)])
        wait_until(lambda: log_of(stack, "worker").count("consuming.stopped") == 2)
        wait_until(lambda: publisher.depth("mock") == 1)
        proxy.open()
        database.wait_until_finished()
        wait_until(lambda: publisher.depth("mock") == 0)
    database.assert_each_completed_once(5)


def test_messages_of_a_worker_told_to_stop_go_back_to_the_broker(
    stack: Stack, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No relay is there that would publish the jobs again."""
    stack.catalog({"echo": {"mock": {"latency_s": 2}}})
    leaving = stack.worker(concurrency=2)
    ids = [job_id.hex for job_id in database.submit(prompts(6))]
    with sender(stack, monkeypatch) as app:
        Publisher(app).publish("mock", [Message(ids, rows=False)])
        wait_until(lambda: database.count("in_progress") == 2)
        leaving.terminate()
        leaving.wait(timeout=20)
        assert Publisher(app).depth("mock") == 1
        stack.worker()
        wait_until(lambda: database.count("completed") == 6)


def test_an_outage_longer_than_the_lease_ends_no_call_and_no_process(
    stack: Stack, database: Database, proxy: Proxy
) -> None:
    """The server itself is up all the time, as one that was promoted is."""
    stack.catalog({"echo": {"mock": {"latency_s": 12}}})
    stack.settings["HEADRACE_DATABASE_URL"] = proxy.url
    stack.relay()
    stack.worker(concurrency=4)
    stack.worker(concurrency=4)
    database.submit(prompts(6))
    wait_until(lambda: database.count("in_progress") == 6)
    before = processes(database)
    proxy.close()
    time.sleep(5)
    assert database.value("SELECT count(*) FROM processes WHERE lease_expires_at > now()") == 0
    proxy.open()
    database.wait_until_finished()
    assert processes(database) == before
    database.assert_each_completed_once(6)
    assert database.value("SELECT count(*) FROM attempts") == 6


def test_read_only_postgres_refuses_submissions_and_loses_no_answer(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """Read-only for longer than a lease, which no heartbeat can renew meanwhile."""
    directory = reachable_directory()
    postgres = EmbeddedPostgres(directory, first_port=0)
    url = postgres.start()
    try:
        migrate(url)
        with Database(url) as database, Stack(url, valkey.url, tmp_path) as stack:
            stack.catalog({"echo": {"mock": {"latency_s": 6}}})
            stack.relay()
            stack.worker(concurrency=64)
            stack.worker(concurrency=64)
            _, api = stack.api()
            headers = {"Authorization": f"Bearer {database.api_key}"}
            wait_until(lambda: len(processes(database)) == 3)
            database.submit(prompts(50))
            wait_until(lambda: database.count("in_progress") == 50)
            switch(url, "on")
            answer = httpx.post(f"{api}/v1/jobs", json={"prompt": "no"}, headers=headers, timeout=30)
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            wait_until(lambda: log_of(stack, "worker").count("reports.wait") > 0)
            time.sleep(5)
            assert database.count("in_progress") == 50
            switch(url, "off")
            database.wait_until_finished()
            database.assert_each_completed_once(50)
            assert database.value("SELECT count(*) FROM attempts") == 50
            answer = httpx.post(f"{api}/v1/jobs", json={"prompt": "yes", "max_tokens": 16}, headers=headers, timeout=30)
            assert answer.status_code == 202
            database.wait_until_finished()
            assert database.count("completed") == 51
    finally:
        postgres.stop()
        shutil.rmtree(directory)


def switch(url: str, value: str) -> None:
    """Make every transaction of the server read-only, or not."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
        connection.execute("SELECT pg_reload_conf()")
