"""Batches of mock rows: how fast they run, who waits for them, and what is left when everything dies under them.

    python -m benchmarks.batches [speed] [storm] [million] [--rows 100000] [--storm-rows 20000] [--many 1000000]

- ``speed``: a batch run by one worker process (64 at a time), beside the naive design: one Celery task and one UPDATE
  per row, one worker process with as many threads, on the same Postgres with fsync and the same Valkey. Meanwhile
  another tenant submits single jobs; from sending the POST to the claim, against the same before the batch. Bounds:
  3 x the naive row rate; p95 under 4 x idle.
- ``storm``: workers, relays and API killed at random under a batch whose attempts fail now and then. Bounds: every row
  once in the output, counts and costs exact, nothing left reserved.
- ``million``: a CSV of a million rows uploaded, paused, cancelled, while another tenant reads the status of a job.
  Bounds: p99 under 100 ms; 300 MB for each process.
"""

import csv
import io
import os
import random
import subprocess
import threading
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from statistics import quantiles
from uuid import UUID

import httpx

from benchmarks.ground import Ground, common_ground, print_fsync, print_machine
from benchmarks.throughput import START_S, spawn, stop
from models.account import generate_key
from models.ids import new_id
from tests.batches import assert_rows_ended_once, batch, counts, new_batch, wait_until_ended
from tests.money import assert_no_drift
from tests.stack import kill, wait_until

CONCURRENCY = 64
TEXT = "the wheel turns, the mill grinds, and nothing of the grain is lost, said reviewer"
_ROUNDS = 2
_EACH = Decimal("0.001")
_RUNNING = {"relay": 2, "worker": 2, "API": 1}
_MB = 1024


def verdict(passed: bool) -> str:
    return "PASS" if passed else "FAIL"


def other_tenant(ground: Ground) -> str:
    """The key of another tenant."""
    key, tenant_id = generate_key(), new_id()
    ground.database.rows("INSERT INTO tenants (id, name) VALUES (%s, %s)", tenant_id, f"other-{tenant_id.hex}")
    ground.database.rows(
        "INSERT INTO api_keys (id, tenant_id, name, lookup, secret_hash) VALUES (%s, %s, 'bench', %s, %s)",
        new_id(),
        tenant_id,
        key.lookup,
        key.secret_hash,
    )
    return key.text


class Singles(threading.Thread):
    """Submits single jobs, one after the other, and takes the time from sending the POST to the claim."""

    def __init__(self, url: str, api_key: str, jobs: int) -> None:
        super().__init__(daemon=True)
        self._url, self._api_key, self._jobs = url, api_key, jobs
        self.times_ms: list[float] = []

    def run(self) -> None:
        headers = {"Authorization": f"Bearer {self._api_key}"}
        with httpx.Client(base_url=self._url, headers=headers, timeout=60) as client:
            for number in range(self._jobs):
                sent = time.time()
                job = client.post("/v1/jobs", json={"prompt": f"job {number}", "max_tokens": 1, "model": "echo"}).json()
                done = client.get(f"{job['status_url']}?wait=30").json()
                self.times_ms.append((datetime.fromisoformat(done["started_at"]).timestamp() - sent) * 1000)
                time.sleep(random.uniform(0.02, 0.08))

    def marks(self) -> tuple[float, float]:
        """p50 and p95 in ms."""
        percentiles = quantiles(self.times_ms, n=20, method="inclusive")
        return percentiles[9], percentiles[18]


def take_singles(url: str, api_key: str, jobs: int) -> tuple[float, float]:
    """p50 and p95 of that many single jobs now."""
    singles = Singles(url, api_key, jobs)
    singles.start()
    singles.join()
    return singles.marks()


def measure_speed(ground: Ground, rows: int, singles: int) -> None:
    """Print the rates, of rounds by turns, and what single jobs waited."""
    ground.stack.catalog({"echo": {}})
    _, url = ground.stack.api()
    each = rows // _ROUNDS
    prompts = [f"{TEXT} {number}" for number in range(each)]
    ours = naive = 0.0
    for _ in range(_ROUNDS):
        with _running(ground):
            ours += _time_batch(ground, prompts)
        naive += _time_naive(ground, each)
    print(f"{rows} mock rows: headrace {rows / ours:.0f} rows/s, naive {rows / naive:.0f} rows/s")
    print(f"headrace / naive: {naive / ours:.2f} (bound 3): {verdict(naive / ours >= 3)}", flush=True)
    with _running(ground):
        _measure_singles(ground, url, prompts, singles)


@contextmanager
def _running(ground: Ground) -> Iterator[None]:
    """One relay and one worker that have run rows already."""
    processes = [ground.stack.relay(), ground.stack.worker(concurrency=CONCURRENCY)]
    warm = new_batch(ground.database, [f"{TEXT} {number}" for number in range(2000)])
    wait_until_ended(ground.database, warm)
    yield
    stop(*processes)


def _measure_singles(ground: Ground, url: str, prompts: list[str], singles: int) -> None:
    key = other_tenant(ground)
    take_singles(url, key, 20)
    idle = take_singles(url, key, singles)
    beside = Singles(url, key, singles)
    busy_id = new_batch(ground.database, prompts)
    wait_until(lambda: counts(ground.database, busy_id)["completed"] > 0)
    beside.start()
    beside.join()
    still = batch(ground.database, busy_id)["status"] == "in_progress"
    httpx.post(f"{url}/v1/batches/batch_{busy_id.hex}/cancel", headers=_headers(ground), timeout=60)
    wait_until_ended(ground.database, busy_id)
    busy = beside.marks()
    for name, (p50, p95) in (("idle", idle), ("beside a batch", busy)):
        print(f"another tenant's single jobs, POST to claim, {name}: p50 {p50:.1f} ms, p95 {p95:.1f} ms")
    print(f"p95 beside a batch / idle: {busy[1] / idle[1]:.2f} (bound 4): {verdict(still and busy[1] < 4 * idle[1])}")


def _headers(ground: Ground) -> dict[str, str]:
    return {"Authorization": f"Bearer {ground.database.api_key}"}


def _time_batch(ground: Ground, prompts: list[str]) -> float:
    started = time.perf_counter()
    batch_id = new_batch(ground.database, prompts)
    assert wait_until_ended(ground.database, batch_id, 1800) == "completed"
    elapsed = time.perf_counter() - started
    assert_rows_ended_once(ground.database, batch_id)
    return elapsed


def _time_naive(ground: Ground, rows: int) -> float:
    os.environ["HEADRACE_REDIS_URL"] = ground.valkey.url
    from benchmarks.naive_rows import SCHEMA, run

    ground.database.rows(SCHEMA)
    ground.database.rows(
        "INSERT INTO naive_rows (id, prompt) SELECT n, %s || n FROM generate_series(1, %s) AS n", f"{TEXT} ", rows
    )
    worker = spawn(
        ground,
        *("-m", "celery", "-A", "benchmarks.naive_rows", "worker", "-P", "threads", "-c", str(CONCURRENCY)),
        *("--without-gossip", "--without-mingle", "--loglevel", "error"),
    )
    time.sleep(START_S)
    started = time.perf_counter()
    for number in range(1, rows + 1):
        run.delay(number, f"{TEXT} {number}")
    done = "SELECT NOT EXISTS (SELECT FROM naive_rows WHERE status = 'queued')"
    wait_until(lambda: ground.database.value(done), 3600, interval_s=0.2)
    elapsed = time.perf_counter() - started
    stop(worker)
    return elapsed


def measure_storm(ground: Ground, rows: int) -> None:
    """Print what is left of a batch under which everything was killed again and again."""
    flaky = {"error": "timeout", "error_rate": 0.02, "retry_after_s": 0.05, "latency_s": 0.1}
    ground.stack.catalog({"echo": {"retries": 20, "mock": flaky}}, breaker={"min_calls": 10**9})
    database = ground.database
    period = database.value(
        'WITH made AS (INSERT INTO budgets (id, tenant_id, scope, "window", limit_usd, alert_at)'
        " VALUES (%s, %s, 'tenant', 'total', 1000, 0.8) RETURNING id) INSERT INTO budget_periods"
        " (budget_id, period_start, limit_usd, reserved_usd)"
        " SELECT id, timestamptz 'epoch', 1000, %s FROM made RETURNING id",
        *(new_id(), database.tenant_id, rows * _EACH),
    )
    prompts = [f"{TEXT} {number}" for number in range(1, rows + 1)]
    batch_id = new_batch(database, prompts, reserved_usd=_EACH, budget_periods=[period])
    kills = _kill_until_ended(ground, batch_id)
    _, url = ground.stack.api()
    print(f"storm: {rows} rows, killed meanwhile: {dict(kills)}; the batch is {batch(database, batch_id)['status']}")
    ids = _output_ids(ground, url, batch_id)
    print(f"output: {len(ids)} lines, {len(set(ids))} rows: {verdict(len(ids) == len(set(ids)) == rows)}")
    checks: list[tuple[str, Callable[[], object]]] = [
        ("counts and costs are those of the jobs", lambda: assert_rows_ended_once(database, batch_id)),
        ("budget: spent is the ledger's, nothing is reserved", lambda: assert_no_drift(database)),
    ]
    for name, check in checks:
        try:
            check()
            print(f"{name}: PASS")
        except AssertionError as error:
            print(f"{name}: FAIL {error}")
    lost = database.value("SELECT count(*) FROM attempts WHERE outcome = 'lost'")
    print(f"{database.value('SELECT count(*) FROM attempts')} attempts, {lost} lost with their worker")


def _kill_until_ended(ground: Ground, batch_id: UUID) -> Counter[str]:
    start: dict[str, Callable[[], subprocess.Popen[bytes]]] = {
        "relay": ground.stack.relay,
        "worker": partial(ground.stack.worker, concurrency=32),
        "API": lambda: ground.stack.api()[0],
    }
    running = {kind: [start[kind]() for _ in range(number)] for kind, number in _RUNNING.items()}
    kills: Counter[str] = Counter()
    while batch(ground.database, batch_id)["status"] == "in_progress":
        time.sleep(random.uniform(1, 3))
        kind = random.choice(["relay", "worker", "worker", "API"])
        kill(running[kind].pop(0))
        kills[kind] += 1
        running[kind].append(start[kind]())
    wait_until(lambda: ground.database.value("SELECT count(*) FROM budget_movements") == 0, 60)
    return kills


def _output_ids(ground: Ground, url: str, batch_id: UUID) -> list[str]:
    with httpx.stream(
        "GET",
        f"{url}/v1/batches/batch_{batch_id.hex}/results",
        params={"format": "jsonl"},
        headers=_headers(ground),
        timeout=120,
    ) as response:
        return [line.split('"custom_id"', 1)[1].split('"', 2)[1] for line in response.iter_lines() if line]


def measure_million(ground: Ground, rows: int) -> None:
    """Print how long a great upload takes, how soon it is paused and cancelled, and what others notice."""
    ground.stack.catalog({"echo": {"mock": {"latency_s": 1.0}}})
    api, url = ground.stack.api()
    processes = {"API": api, "relay": ground.stack.relay(), "worker": ground.stack.worker(concurrency=CONCURRENCY)}
    time.sleep(START_S)
    headers = {"Authorization": f"Bearer {other_tenant(ground)}"}
    job = httpx.post(f"{url}/v1/jobs", json={"prompt": "x", "model": "echo"}, headers=headers).json()
    path = ground.stack.directory / "rows.csv"
    _write_csv(path, rows)
    peaks: dict[str, float] = {}
    with _reading(f"{url}{job['status_url']}", headers) as times_ms, path.open("rb") as file:
        started = time.perf_counter()
        answer = httpx.post(
            f"{url}/v1/batches/upload",
            data={"prompt": "Classify: {{text}}", "model": "echo", "max_tokens": "16", "id_column": "id"},
            files={"file": ("rows.csv", file, "text/csv")},
            headers=_headers(ground),
            timeout=1800,
        )
        assert answer.status_code == 202, answer.text
        print(f"{rows} rows accepted in {time.perf_counter() - started:.1f} s")
        batch_url = f"{url}/v1/batches/{answer.json()['id']}"
        time.sleep(5)
        for action, reached in (("pause", "paused"), ("resume", "in_progress"), ("cancel", "cancelled")):
            started = time.perf_counter()
            httpx.post(f"{batch_url}/{action}", headers=_headers(ground), timeout=60).raise_for_status()
            took = time.perf_counter() - started
            wait_until(partial(_is, batch_url, _headers(ground), reached), 60)
            ended = time.perf_counter() - started
            print(f"{action}: answered after {took * 1000:.0f} ms, {reached} after {ended * 1000:.0f} ms")
        peaks = {name: _peak_mb(process.pid) for name, process in processes.items()}
    print(f"counts: {httpx.get(batch_url, headers=_headers(ground)).json()['counts']}")
    p50, p99 = (quantiles(times_ms, n=100, method="inclusive")[place] for place in (49, 98))
    print(
        f"/status of another tenant's job, {len(times_ms)} times: p50 {p50:.1f} ms, p99 {p99:.1f} ms (bound 100):"
        f" {verdict(p99 < 100)}"
    )
    for name, peak in peaks.items():
        print(f"memory of {name}, its children included, at most: {peak:.0f} MB (bound 300): {verdict(peak < 300)}")


def _is(batch_url: str, headers: dict[str, str], status: str) -> bool:
    return bool(httpx.get(batch_url, headers=headers, timeout=60).json()["status"] == status)


def _write_csv(path: Path, rows: int) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows((number, f"{TEXT} {number}") for number in range(rows))


@contextmanager
def _reading(url: str, headers: dict[str, str]) -> Iterator[list[float]]:
    """Read a URL some 50 times a second until the block ends; the times in ms."""
    times_ms: list[float] = []
    over = threading.Event()

    def read() -> None:
        with httpx.Client(headers=headers, timeout=60) as client:
            while not over.wait(0.02):
                started = time.perf_counter()
                client.get(url).raise_for_status()
                times_ms.append((time.perf_counter() - started) * 1000)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield times_ms
    finally:
        over.set()
        thread.join()


def _peak_mb(pid: int) -> float:
    """The most memory that a process or one of its children has had."""
    family = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        family += [int(child) for child in task.read_text().split()]
    peaks = []
    for member in family:
        status = Path(f"/proc/{member}/status").read_text()
        peaks += [int(line.split()[1]) / _MB for line in io.StringIO(status) if line.startswith("VmHWM")]
    return max(peaks)


def main() -> None:
    """Measure and print."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=["speed", "storm", "million", []], default=[])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--singles", type=int, default=200)
    parser.add_argument("--storm-rows", type=int, default=20_000)
    parser.add_argument("--many", type=int, default=1_000_000)
    options = parser.parse_args()
    parts = options.parts or ["speed", "storm", "million"]
    print_machine()
    for part in parts:
        settings = {"HEADRACE_LEASE_S": "3", "HEADRACE_MAX_DELIVERIES": "100"} if part == "storm" else {}
        with common_ground(**settings) as ground:
            print_fsync(ground.database.url)
            match part:
                case "speed":
                    measure_speed(ground, options.rows, options.singles)
                case "storm":
                    measure_storm(ground, options.storm_rows)
                case "million":
                    measure_million(ground, options.many)


if __name__ == "__main__":
    main()
