"""No-op jobs per second, submitted and run to completed: Headrace, Procrastinate, and bare Celery on Redis.

    python -m benchmarks.throughput [--jobs 5000] [--rounds 3]

Every system starts empty, gets its jobs from 32 concurrent clients while its one worker process runs, and is timed
from the first submission to the last completion. Headrace is submitted to over HTTP and keeps every job, attempt
and result in Postgres; Procrastinate defers in process and keeps jobs in the same Postgres; Celery keeps nothing.
Bound: 2 x Procrastinate; aim: 3 x.
"""

import asyncio
import os
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from statistics import median

from benchmarks.ground import Ground, common_ground, print_fsync, print_machine, spread
from benchmarks.load import run_load
from benchmarks.submit import bodies
from tests.stack import ROOT, Database, wait_until

CONCURRENCY = 64
START_S = 4.0


def run_headrace(ground: Ground, jobs: int, url: str) -> float:
    """Seconds from the first POST to the last completed job."""
    before = ground.database.count("completed")
    started = time.perf_counter()
    result = run_load(
        "127.0.0.1", int(url.rsplit(":", 1)[1]), "/v1/jobs", bodies(jobs), api_key=ground.database.api_key
    )
    assert result.statuses == {202: jobs}, result.statuses
    wait_until(lambda: ground.database.unfinished() == 0, 120, interval_s=0.02)
    elapsed = time.perf_counter() - started
    assert ground.database.count("completed") == before + jobs
    return elapsed


def run_procrastinate(ground: Ground, jobs: int, url: str) -> float:
    """Seconds from the first ``defer_async`` to the last succeeded job."""
    from benchmarks.procrastinate_app import defer_all

    with Database(url) as database:
        done = "SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'"
        before = int(database.value(done))
        started = time.perf_counter()
        asyncio.run(defer_all(url, jobs, clients=32))
        wait_until(lambda: database.value(done) == before + jobs, 120, interval_s=0.02)
        return time.perf_counter() - started


def run_celery(ground: Ground, jobs: int, counter: str) -> float:
    """Seconds from the first ``delay()`` to the last run task, which counts itself in Redis."""
    import redis

    os.environ.setdefault("HEADRACE_REDIS_URL", ground.valkey.url)
    from benchmarks.bare_celery import noop

    with redis.Redis.from_url(ground.valkey.url) as client:
        client.delete(counter)
        started = time.perf_counter()
        for _ in range(jobs):
            noop.delay()
        wait_until(lambda: int(client.get(counter) or 0) == jobs, 120, interval_s=0.02)
        return time.perf_counter() - started


def spawn(ground: Ground, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    """A worker of another system, under the same Python."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | ground.stack.settings | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def measure(name: str, run: Callable[[], float], jobs: int, rounds: int) -> list[float]:
    """Rates of several rounds, after one that is not counted."""
    run()
    rates = [jobs / run() for _ in range(rounds)]
    print(f"{name:>14}: {spread(rates)} jobs/s", flush=True)
    return rates


def measure_headrace(ground: Ground, jobs: int, rounds: int) -> list[float]:
    """Rates of Headrace: one API, one relay, one worker."""
    ground.stack.catalog({"echo": {}})
    _, url = ground.stack.api()
    processes = [ground.stack.relay(), ground.stack.worker(concurrency=CONCURRENCY)]
    time.sleep(START_S)
    rates = measure("headrace", lambda: run_headrace(ground, jobs, url), jobs, rounds)
    stop(*processes)
    return rates


def measure_procrastinate(ground: Ground, jobs: int, rounds: int) -> list[float]:
    """Rates of Procrastinate in a database of its own on the same server."""
    url = ground.fresh_database("procrastinate")
    subprocess.run([sys.executable, "-m", "benchmarks.procrastinate_app", "schema", url], cwd=ROOT, check=True)
    worker = spawn(ground, "-m", "benchmarks.procrastinate_app", "worker", url, str(CONCURRENCY))
    time.sleep(START_S)
    rates = measure("procrastinate", lambda: run_procrastinate(ground, jobs, url), jobs, rounds)
    stop(worker)
    return rates


def measure_celery(ground: Ground, jobs: int, rounds: int) -> list[float]:
    """Rates of Celery on the same Valkey."""
    worker = spawn(
        ground,
        *("-m", "celery", "-A", "benchmarks.bare_celery", "worker", "-P", "threads", "-c", str(CONCURRENCY)),
        *("--without-gossip", "--without-mingle", "--loglevel", "error"),
    )
    time.sleep(START_S)
    rates = measure("bare celery", lambda: run_celery(ground, jobs, "bare:done"), jobs, rounds)
    stop(worker)
    return rates


def stop(*processes: subprocess.Popen[bytes]) -> None:
    """End processes in good order."""
    for process in processes:
        process.terminate()
        process.wait()


def main() -> None:
    """Measure and print."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with common_ground() as ground:
        print_machine()
        print_fsync(ground.database.url)
        ours, theirs, celery = (
            run(ground, options.jobs, options.rounds)
            for run in (measure_headrace, measure_procrastinate, measure_celery)
        )
    print(f"headrace / procrastinate: {median(ours) / median(theirs):.2f} (bound 2, aim 3)")
    print(f"headrace / bare celery: {median(ours) / median(celery):.2f}")


if __name__ == "__main__":
    main()
