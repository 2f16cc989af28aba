"""500 calls in flight in one remote worker process: its memory, and what it adds to each call.

    python -m benchmarks.remote [--calls 500] [--latency 2] [--seconds 20]

A provider in a process of its own streams each answer after 2 s and writes down when each call arrived and when its
answer was sent. Jobs are submitted steadily, a little faster than 500 places and 2 s allow, so that the worker is
always full. Claim to provider: from ``attempts.started_at``, when Postgres began the claim, to the arrival. Provider
to result: from the answer's last byte to ``jobs.finished_at``, when Postgres began the statement that settles the
job. Both clocks are this machine's. The first seconds, until the worker is full, are left out.
Bounds: 500 in flight, under 500 MB at the peak, p50 of each way under 15 ms.
"""

import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx
import redis

from api.local.ports import choose_port
from benchmarks.ground import Ground, common_ground, print_fsync, print_machine
from models.wakeups import DUE
from tests.stack import ROOT, wait_until

TICK_S = 0.02
MEMORY_BOUND_MB = 500
LATENCY_BOUND_MS = 15
_TIMES = (
    "SELECT j.request -> 'messages' -> -1 ->> 'content' AS prompt, extract(epoch FROM a.started_at)::float AS claimed,"
    " extract(epoch FROM j.finished_at)::float AS finished"
    " FROM jobs j JOIN attempts a ON a.job_id = j.id WHERE j.status = 'completed'"
)


@contextmanager
def mock_provider(latency_s: float) -> Iterator[str]:
    """Run the provider in a process of its own; its base URL."""
    port = choose_port("127.0.0.1", [])
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.mock_provider", str(port), str(latency_s)], cwd=ROOT)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(f"{url}/times"))
        yield url
    finally:
        process.kill()
        process.wait()


def submit_steadily(ground: Ground, per_second: float, seconds: float) -> int:
    """Record jobs at a steady pace, waking the relay each time as the API does; how many."""
    submitted, started = 0, time.monotonic()
    with redis.Redis.from_url(ground.valkey.url) as client:
        while (elapsed := time.monotonic() - started) < seconds:
            due = int(per_second * elapsed) - submitted
            if due > 0:
                prompts = [f"call {submitted + n}" for n in range(due)]
                ground.database.submit(prompts, route=["remote"])
                client.publish(DUE, "")
                submitted += due
            time.sleep(TICK_S)
    return submitted


def peak_memory_mb(pid: int) -> float:
    """The most resident memory that a process has had, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmHWM in /proc")


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def report(name: str, values: list[float]) -> None:
    """Print the distribution of latencies given in seconds."""
    cuts = [value * 1000 for value in quantiles(values, n=100, method="inclusive")]
    verdict = "ok" if cuts[49] < LATENCY_BOUND_MS else "MISSED"
    rest = f"p90 {cuts[89]:.1f}, p99 {cuts[98]:.1f}"
    print(f"{name:>18}: p50 {cuts[49]:.1f} ms (bound {LATENCY_BOUND_MS}: {verdict}), {rest}")


def measure(ground: Ground, url: str, options: Any) -> None:  # Any: argparse's namespace
    """Run the load against a fresh worker and print what was seen."""
    entry = {"provider": "openai", "model": "mock", "base_url": f"{url}/v1"}
    ground.stack.catalog({"remote": entry})
    ground.stack.relay()
    worker = ground.stack.worker(concurrency=options.calls)
    time.sleep(4)
    print(f"worker idle: {peak_memory_mb(worker.pid):.0f} MB")
    before = cpu_seconds(worker.pid)
    jobs = submit_steadily(ground, options.calls / options.latency * 1.02, options.seconds)
    ground.database.wait_until_finished(120)
    used = cpu_seconds(worker.pid) - before
    assert ground.database.count("completed") == jobs, ground.database.rows("SELECT status, error FROM jobs LIMIT 5")
    seen = httpx.get(f"{url}/times").json()
    most, memory = seen["most_in_flight"], peak_memory_mb(worker.pid)
    print(f"most in flight: {most} (bound {options.calls}: {'ok' if most >= options.calls else 'MISSED'})")
    print(f"worker's peak: {memory:.0f} MB (bound {MEMORY_BOUND_MB}: {'ok' if memory < MEMORY_BOUND_MB else 'MISSED'})")
    rows = ground.database.rows(_TIMES)
    full_from = min(row["claimed"] for row in rows) + 2 * options.latency
    steady = [row for row in rows if row["claimed"] >= full_from]
    report("claim to provider", [seen["times"][row["prompt"]][0] - row["claimed"] for row in steady])
    report("provider to result", [row["finished"] - seen["times"][row["prompt"]][1] for row in steady])
    print(
        f"{len(steady)} calls of {jobs} counted; the worker used {used / jobs * 1000:.2f} ms of processor time per call"
    )


def main() -> None:
    """Measure and print."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--latency", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    with common_ground() as ground, mock_provider(options.latency) as url:
        print_machine()
        print_fsync(ground.database.url)
        measure(ground, url, options)


def answers(url: str) -> bool:
    """Whether a server says yes to a GET."""
    try:
        return httpx.get(url, timeout=1).is_success
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    main()
