"""A budget is never overspent (promise 3), with real API processes and workers, whatever happens to them."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import httpx

from benchmarks.load import run_load
from models.database import dump_json
from tests.money import HELD, assert_no_drift, put_budget, watched, worst_case
from tests.stack import Database, Stack, kill, wait_until

REQUEST = {"prompt": "Say hello.", "model": "echo", "max_tokens": 16}


def submit_from_both(urls: list[str], api_key: str, each: int) -> Counter[int]:
    """Statuses of submissions sent to every API at once, each over a connection of its own."""

    def send(url: str) -> Counter[int]:
        port = int(url.rsplit(":", 1)[1])
        body = dump_json(REQUEST).encode()
        result = run_load("127.0.0.1", port, "/v1/jobs", [body] * each, connections=each, api_key=api_key)
        return Counter(result.statuses)

    with ThreadPoolExecutor(len(urls)) as pool:
        return sum(pool.map(send, urls), Counter[int]())


def test_1000_concurrent_submissions_to_a_budget_of_100_make_exactly_100_jobs(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {"mock": {"latency_s": 0.02}}})
    urls = [stack.api()[1], stack.api()[1]]
    each = worst_case(database, urls[0], database.api_key, **REQUEST)
    put_budget(urls[0], database.api_key, 100 * each)
    with watched(database.url) as watch:
        statuses = submit_from_both(urls, database.api_key, each=500)
        assert statuses == {202: 100, 402: 900}
        assert database.value(HELD) == 100 * each
        stack.relay()
        stack.worker(concurrency=32)
        database.wait_until_finished()
    assert watch.overspent == []
    assert watch.looks > 20
    assert watch.fullest == 100 * each
    assert database.count("completed") == 100
    assert_no_drift(database)


def test_no_cent_drifts_while_workers_are_killed_and_jobs_cancelled_and_retried(
    stack: Stack, database: Database
) -> None:
    failing = {"error": "timeout", "error_rate": 0.3, "latency_s": 0.2}
    stack.catalog({"echo": {"retries": 10, "mock": failing}}, breaker={"min_calls": 100_000})
    stack.settings["HEADRACE_MAX_DELIVERIES"] = "20"
    urls = [stack.api()[1], stack.api()[1]]
    each = worst_case(database, urls[0], database.api_key, **REQUEST)
    put_budget(urls[0], database.api_key, 100 * each)
    headers = {"authorization": f"Bearer {database.api_key}"}
    stack.relay()
    workers = [stack.worker(concurrency=4), stack.worker(concurrency=4)]
    stop = threading.Event()

    def cancel_some() -> None:
        while not stop.wait(0.05):
            for job in database_of_canceller.rows(
                "SELECT id FROM jobs WHERE status IN ('queued', 'in_progress') ORDER BY random() LIMIT 1"
            ):
                httpx.post(f"{urls[1]}/v1/jobs/job_{job['id'].hex}/cancel", headers=headers, timeout=30)

    with watched(database.url) as watch, Database(database.url) as database_of_canceller:
        statuses = submit_from_both(urls, database.api_key, each=500)
        assert statuses[202] >= 100
        assert statuses[402] == 1000 - statuses[202]
        canceller = threading.Thread(target=cancel_some)
        canceller.start()
        try:
            for _ in range(2):
                wait_until(lambda: database.count("in_progress") >= 4)
                kill(workers.pop(0))
                workers.append(stack.worker(concurrency=4))
                submit_from_both(urls, database.api_key, each=20)
        finally:
            stop.set()
            canceller.join()
        database.wait_until_finished(240)  # what a killed worker held unclaimed is published again only later
    assert watch.overspent == []
    outcomes = {row["outcome"] for row in database.rows("SELECT DISTINCT outcome FROM attempts")}
    assert {"completed", "failed", "lost"} <= outcomes
    assert database.count("cancelled") > 1
    assert_no_drift(database)


def test_a_retry_reserves_its_worst_case_again_and_the_job_fails_when_the_budget_has_no_room(
    stack: Stack, database: Database
) -> None:
    stack.catalog({"echo": {"retries": 5, "mock": {"error": "timeout", "error_calls": 1, "retry_after_s": 0.1}}})
    _, url = stack.api()
    each = worst_case(database, url, database.api_key, **REQUEST)
    cost = Decimal("0.00001")  # of a failed attempt: 10 tokens in at 1 USD per million
    put_budget(url, database.api_key, each)
    stack.relay()
    worker = stack.worker()
    submit_from_both([url], database.api_key, each=1)
    database.wait_until_finished()
    job = database.one("SELECT status, error ->> 'code' AS code, cost_usd FROM jobs WHERE status <> 'cancelled'")
    assert (job["status"], job["code"], job["cost_usd"]) == ("failed", "budget_exceeded", cost)
    attempt = database.one("SELECT outcome, error ->> 'code' AS code FROM attempts")
    assert attempt == {"outcome": "failed", "code": "timeout"}
    assert_no_drift(database)

    kill(worker)
    stack.worker()  # its first call fails too
    put_budget(url, database.api_key, each + 2 * cost)
    with watched(database.url) as watch:
        submit_from_both([url], database.api_key, each=1)
        database.wait_until_finished()
    assert database.count("completed") == 1
    assert watch.overspent == []
    assert watch.fullest == each + 2 * cost
    assert_no_drift(database)
