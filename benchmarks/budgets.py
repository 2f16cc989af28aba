"""What budgets cost, and whether they hold: submissions and completions with and without one, turn by turn.

    python -m benchmarks.budgets [--requests 6000] [--rounds 5]

Two tenants share one API process, relay and worker; one has a budget that is never short. Submissions arrive over 32
keep-alive connections; completions are of no-op jobs that cost money, timed from the moment the relay may begin.
Bounds: 70 % of the submissions, 80 % of the completions. Then two API processes get 1,000 submissions at once for a
budget of 100 jobs, attempts fail, workers are killed and jobs cancelled, while a checker reads the balance.
"""

import signal
import subprocess
import time
from argparse import ArgumentParser
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import httpx

from api.keys import make_key
from benchmarks.ground import Ground, common_ground, print_fsync, print_machine, spread
from benchmarks.load import LoadResult, run_load
from benchmarks.submit import bodies
from models.database import dump_json
from tests.money import assert_no_drift, put_budget, watched, worst_case
from tests.stack import Database, kill, wait_until

WITHOUT, WITH = "without", "with"
PLENTY = "1000000"
REQUEST = {"prompt": "x", "model": "echo", "max_tokens": 64}
EMPTY = "TRUNCATE jobs, attempts, ledger_entries, budgets, budget_periods, budget_movements"


def submit(url: str, api_key: str, requests: int, connections: int = 32) -> LoadResult:
    """POST jobs and check that each was accepted."""
    port = int(url.rsplit(":", 1)[1])
    result = run_load("127.0.0.1", port, "/v1/jobs", bodies(requests), connections=connections, api_key=api_key)
    assert result.statuses == {202: requests}, result.statuses
    return result


def drain(ground: Ground, url: str, api_key: str, jobs: int, relay: "subprocess.Popen[bytes]") -> float:
    """Jobs per second from the relay's waking to the last completed job."""
    relay.send_signal(signal.SIGSTOP)
    submit(url, api_key, jobs)
    before = ground.database.count("completed")
    started = time.perf_counter()
    relay.send_signal(signal.SIGCONT)
    wait_until(lambda: ground.database.unfinished() == 0, 120, interval_s=0.02)
    rate = jobs / (time.perf_counter() - started)
    assert ground.database.count("completed") == before + jobs
    return rate


def side_by_side(name: str, measure: Callable[[str], float], keys: dict[str, str], rounds: int, bound: float) -> None:
    """Print rates of both tenants, measured turn by turn after one round that is not counted."""
    for key in keys.values():
        measure(key)
    rates: dict[str, list[float]] = {which: [] for which in keys}
    for round_number in range(rounds):
        turns = list(keys.items())[:: 1 if round_number % 2 else -1]
        for which, key in turns:
            rates[which].append(measure(key))
    for which, values in rates.items():
        print(f"{name} {which} a budget: {spread(values)} /s", flush=True)
    ratios = [mine / plain for mine, plain in zip(rates[WITH], rates[WITHOUT], strict=True)]
    shown = f"median {median(ratios):.2f}, {min(ratios):.2f}-{max(ratios):.2f}"
    print(f"{name}, with / without, round by round: {shown} (bound {bound})", flush=True)


def race(ground: Ground, rounds_of_kills: int) -> None:
    """1,000 submissions at once from two API processes to a budget that fits 100; then everything goes wrong:
    attempts fail and cost, workers are killed, jobs are cancelled."""
    failing = {"error": "timeout", "error_rate": 0.3, "latency_s": 0.2}
    ground.stack.catalog({"echo": {"retries": 10, "mock": failing}}, breaker={"min_calls": 100_000})
    ground.stack.settings |= {"HEADRACE_LEASE_S": "3", "HEADRACE_MAX_DELIVERIES": "20"}
    urls = [ground.stack.api()[1], ground.stack.api()[1]]
    database, api_key = ground.database, ground.database.api_key
    each = worst_case(database, urls[0], api_key, **REQUEST)
    put_budget(urls[0], api_key, 100 * each)
    with watched(database.url) as watch:
        accepted = submit_at_once(urls, api_key)
        print(f"1,000 submissions at once to a budget of 100 jobs: {accepted} accepted", flush=True)
        ground.stack.relay()
        workers = [ground.stack.worker(concurrency=4), ground.stack.worker(concurrency=4)]
        for _ in range(rounds_of_kills):
            wait_until(lambda: database.count("in_progress") >= 4)
            kill(workers.pop(0))
            workers.append(ground.stack.worker(concurrency=4))
            cancel_some(database, urls[1], api_key, 5)
        wait_until(lambda: database.unfinished() == 0, 120)
    outcomes = database.rows("SELECT outcome, count(*) FROM attempts GROUP BY 1 ORDER BY 1")
    print("attempts since: " + ", ".join(f"{row['count']} {row['outcome']}" for row in outcomes))
    print(f"fullest {watch.fullest} of {100 * each}, overspent at {len(watch.overspent)} of {watch.looks} looks")
    assert accepted == 100, accepted
    assert not watch.overspent, watch.overspent
    assert_no_drift(database)
    print("drift after all settled: 0; reserved: 0")


def submit_at_once(urls: list[str], api_key: str) -> int:
    """How many of 500 submissions to each API are accepted, each sent over a connection of its own."""

    def send(url: str) -> int:
        port = int(url.rsplit(":", 1)[1])
        payload = [dump_json(REQUEST).encode()] * 500
        result = run_load("127.0.0.1", port, "/v1/jobs", payload, connections=500, api_key=api_key)
        return result.statuses.get(202, 0)

    with ThreadPoolExecutor(len(urls)) as pool:
        return sum(pool.map(send, urls))


def cancel_some(database: Database, url: str, api_key: str, number: int) -> None:
    """Cancel jobs that wait or run."""
    query = "SELECT id FROM jobs WHERE status IN ('queued', 'in_progress') ORDER BY random() LIMIT %s"
    for job in database.rows(query, number):
        headers = {"authorization": f"Bearer {api_key}"}
        httpx.post(f"{url}/v1/jobs/job_{job['id'].hex}/cancel", headers=headers, timeout=30)


def main() -> None:
    """Measure and print."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with common_ground() as ground:
        print_machine()
        print_fsync(ground.database.url)
        ground.stack.catalog({"echo": {}})
        api, url = ground.stack.api()
        keys = {
            WITHOUT: ground.database.api_key,
            WITH: make_key(ground.database.url, "budgeted", "bench"),
        }
        put_budget(url, keys[WITH], PLENTY)
        side_by_side(
            "submissions", lambda key: submit(url, key, options.requests).rate, keys, options.rounds, bound=0.7
        )
        ground.database.rows(EMPTY)
        put_budget(url, keys[WITH], PLENTY)
        relay = ground.stack.relay()
        worker = ground.stack.worker(concurrency=64)
        time.sleep(4)
        jobs = options.requests // 2
        side_by_side("completions", lambda key: drain(ground, url, key, jobs, relay), keys, options.rounds, bound=0.8)
        for process in (api, relay, worker):
            kill(process)
        ground.database.rows(EMPTY)
        race(ground, rounds_of_kills=3)


if __name__ == "__main__":
    main()
