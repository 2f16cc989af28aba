"""A storm: mock jobs run while workers, relays and the broker are killed again and again.

    python -m benchmarks.storm [--jobs 12000] [--kills 60]

Every kill is a ``kill -9``; the broker also comes back empty every other time. At the end each job must be terminal
and have exactly one effect: one completed attempt, one result (its own prompt), one settlement in the ledger.
"""

import random
import subprocess
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable

from benchmarks.ground import Ground, common_ground, print_fsync, print_machine
from tests.stack import kill, wait_until

CATALOG = {"echo": {"mock": {"latency_s": 0.25}}}
WORKERS, RELAYS = 3, 2


class Storm:
    """Kills something at random, and starts what died again."""

    def __init__(self, ground: Ground, seed: int) -> None:
        self._ground = ground
        self._random = random.Random(seed)
        self._workers = [self._worker() for _ in range(WORKERS)]
        self._relays = [ground.stack.relay() for _ in range(RELAYS)]
        self.kills: Counter[str] = Counter()

    def strike(self) -> None:
        """One kill: mostly of a worker."""
        target = self._random.choices(["worker", "relay", "broker"], weights=[6, 2, 2])[0]
        {"worker": self._kill_worker, "relay": self._kill_relay, "broker": self._kill_broker}[target]()
        self.kills[target] += 1

    def _worker(self) -> subprocess.Popen[bytes]:
        return self._ground.stack.worker(concurrency=16)

    def _kill_worker(self) -> None:
        self._replace(self._workers, self._worker)

    def _kill_relay(self) -> None:
        self._replace(self._relays, self._ground.stack.relay)

    def _replace(self, processes: list[subprocess.Popen[bytes]], start: Callable[[], subprocess.Popen[bytes]]) -> None:
        kill(processes.pop(self._random.randrange(len(processes))))
        processes.append(start())

    def _kill_broker(self) -> None:
        self._ground.valkey.kill()
        time.sleep(0.3)
        if self._random.random() < 0.5:
            self._ground.valkey.wipe()
        self._ground.valkey.start()


def main() -> None:
    """Run the storm and print its report."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=12_000)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with common_ground(HEADRACE_LEASE_S="4") as ground:
        print_machine()
        print_fsync(ground.database.url)
        ground.stack.catalog(CATALOG)
        storm = Storm(ground, options.seed)
        wait_until(lambda: ground.database.value("SELECT count(*) FROM processes") == WORKERS + RELAYS)
        started = time.monotonic()
        portion = -(-options.jobs // options.kills)
        submitted = 0
        for _ in range(options.kills):
            number = min(portion, options.jobs - submitted)
            ground.database.submit([f"prompt {submitted + n}" for n in range(number)])
            submitted += number
            time.sleep(2.0)
            storm.strike()
        calmed = time.monotonic()
        ground.database.wait_until_finished(300)
        ended = time.monotonic()
        report(ground, options.jobs, storm.kills, calmed - started, ended - calmed)


def report(ground: Ground, jobs: int, kills: Counter[str], storm_s: float, after_s: float) -> None:
    """Check the promises and print what happened."""
    database = ground.database
    database.assert_each_completed_once(jobs)
    effects = database.one(
        "SELECT count(*) FILTER (WHERE outcome = 'lost') AS lost,"
        " count(*) FILTER (WHERE outcome = 'released') AS released, count(*) AS attempts,"
        " count(DISTINCT job_id) FILTER (WHERE outcome = 'completed') AS effects FROM attempts"
    )
    print(f"{sum(kills.values())} kills in {storm_s:.0f} s: " + ", ".join(f"{n} {what}" for what, n in kills.items()))
    print(f"{jobs} jobs submitted, {database.count('completed')} completed, {effects['effects']} distinct effects")
    print(f"{effects['attempts']} attempts: {effects['lost']} lost with their worker, {effects['released']} released")
    print(f"most rescues of one job: {database.value('SELECT max(rescues) FROM jobs')}")
    print(f"last job finished {after_s:.1f} s after the last kill")


if __name__ == "__main__":
    main()
