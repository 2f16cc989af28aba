"""How fast the rows of batches run beside a transaction that stays open, as a backup or a report holds one.

    python -m benchmarks.snapshot [--minutes 10] [--quick]

Postgres keeps every version of every row, and its index entries, for as long as such a transaction may look at them.
One relay and one worker (64 at a time) run mock rows all the time: a tenth of ``--minutes`` (at least 30 s) before, the
minutes beside a REPEATABLE READ transaction, and a tenth after it has ended. Prints the rate of each part, and the
statements that were seen active most often beside the transaction. Bound: beside it, in its last quarter too, at
least 80 % of the mean rate before and after.
"""

import sys
import threading
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import psycopg

from benchmarks.ground import Ground, common_ground, print_fsync, print_machine
from benchmarks.throughput import START_S
from tests.batches import new_batch
from tests.stack import Database

CONCURRENCY = 64
BOUND = 0.8
_ROWS = 20_000
_AHEAD = 2 * _ROWS
_QUICK_MINUTES = 2.0
_LEAST_S = 30.0
_PARTS = 4
_SAMPLE_S = 0.05
_SHOWN = 6


class Supply(threading.Thread):
    """Adds batches of a tenant so that rows never run out, and samples what Postgres is busy with."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._over = threading.Event()
        self.active: Counter[str] = Counter()
        self.samples = 0

    def run(self) -> None:
        with Database(self._url) as database:
            while not self._over.wait(_SAMPLE_S):
                if self.samples % 20 == 0:
                    self._add_rows(database)
                self._sample(database)

    def stop(self) -> None:
        self._over.set()
        self.join()

    def reset(self) -> None:
        self.active, self.samples = Counter(), 0

    def _add_rows(self, database: Database) -> None:
        left = "SELECT coalesce(sum(total - next_row + 1), 0) FROM batches WHERE status = 'in_progress'"
        if database.value(left) < _AHEAD:
            add_batch(database, _ROWS)

    def _sample(self, database: Database) -> None:
        self.samples += 1
        rows = database.rows(
            "SELECT application_name, regexp_replace(query, '\\s+', ' ', 'g') AS query FROM pg_stat_activity"
            " WHERE state = 'active' AND application_name LIKE 'headrace-%%'"
        )
        self.active.update(f"{row['application_name'].split('@')[0]}: {row['query'][:100]}" for row in rows)


def add_batch(database: Database, rows: int) -> UUID:
    """A batch of as many rows, written by the server."""
    batch_id = new_batch(database, ["row"], total=rows)
    database.rows(
        "INSERT INTO batch_rows (batch_id, number, line, cells)"
        " SELECT %s, n, n + 1, ARRAY['row ' || n] FROM generate_series(2, %s) n",
        batch_id,
        rows,
    )
    return batch_id


@contextmanager
def open_snapshot(url: str) -> Iterator[None]:
    """A transaction that has read the jobs, and stays open."""
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT FROM jobs LIMIT 1")
        yield


def measure(database: Database, seconds: float) -> float:
    """Rows per second over so many seconds."""
    done = "SELECT coalesce(sum(completed), 0) FROM batch_counts"
    started, before = time.perf_counter(), int(database.value(done))
    time.sleep(seconds)
    after = int(database.value(done))
    return (after - before) / (time.perf_counter() - started)


def run(ground: Ground, minutes: float) -> bool:
    """Print the rates; whether they meet the bound."""
    database = ground.database
    beside_s = minutes * 60
    alone_s = max(_LEAST_S, beside_s / 10)
    supply = Supply(database.url)
    assert database.api_key
    add_batch(database, _AHEAD)
    ground.stack.catalog({"echo": {}})
    ground.stack.relay()
    ground.stack.worker(concurrency=CONCURRENCY)
    supply.start()
    time.sleep(START_S + _LEAST_S / 3)  # warm
    before = measure(database, alone_s)
    print(f"before: {before:.0f} rows/s in {alone_s:.0f} s", flush=True)
    supply.reset()
    beside = []
    with open_snapshot(database.url):
        for part in range(_PARTS):
            beside.append(measure(database, beside_s / _PARTS))
            print(f"beside an open transaction, part {part + 1} of {_PARTS}: {beside[-1]:.0f} rows/s", flush=True)
    for query, times in supply.active.most_common(_SHOWN):
        print(f"  {times / supply.samples:4.0%} {query}")
    after = measure(database, alone_s)
    supply.stop()
    print(f"after: {after:.0f} rows/s")
    alone, mean = (before + after) / 2, sum(beside) / _PARTS
    passed = min(mean, beside[-1]) >= BOUND * alone
    print(
        f"beside / alone over {minutes:g} min: {mean / alone:.2f}, in the last quarter {beside[-1] / alone:.2f}"
        f" (bound {BOUND}): {'PASS' if passed else 'FAIL'}"
    )
    return passed


def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    print_machine()
    with common_ground() as ground:
        print_fsync(ground.database.url)
        passed = run(ground, _QUICK_MINUTES if arguments.quick else arguments.minutes)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
