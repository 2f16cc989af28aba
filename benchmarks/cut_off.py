"""One of two workers is cut off from Postgres, not from the broker: what the other one still gets done.

    python -m benchmarks.cut_off [--seconds 60] [--concurrency 20] [--latency 0.05]

First one worker alone works on a backlog: that is its own rate. Then a second one joins, whose way to Postgres is a
proxy of this benchmark's own; while both work, the proxy is closed for ``--seconds``, then opened. At the end each job
must have been completed by one attempt, settled once.
"""

import time
from argparse import ArgumentParser

from benchmarks.ground import Ground, common_ground, print_fsync, print_machine
from tests.proxy import Proxy
from tests.stack import wait_until

BOUND = 0.9
_SETTLE_S = 2.0
_ENOUGH = 1.3


def main() -> None:
    """Measure, and print the two rates and their ratio; exits with 1 below the bound."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--concurrency", type=int, default=20)
    parser.add_argument("--latency", type=float, default=0.05)
    options = parser.parse_args()
    with common_ground() as ground, Proxy(ground.database.url) as proxy:
        print_machine()
        print_fsync(ground.database.url)
        ground.stack.catalog({"echo": {"mock": {"latency_s": options.latency}}})
        ground.stack.relay()
        ground.stack.worker(concurrency=options.concurrency)
        wait_until(lambda: _workers(ground) == 1)
        most = _ENOUGH * options.concurrency / options.latency  # jobs per second of one worker
        submitted = _submit(ground, int(most * (options.seconds / 2 + _SETTLE_S)))
        alone = _rate(ground, options.seconds / 2)
        ground.database.wait_until_finished(600)

        ground.stack.settings["HEADRACE_DATABASE_URL"] = proxy.url
        ground.stack.worker(concurrency=options.concurrency)
        wait_until(lambda: _workers(ground) == 2)
        submitted += _submit(ground, int(most * (2 * (options.seconds / 6 + _SETTLE_S) + options.seconds)))
        both = _rate(ground, options.seconds / 6)
        proxy.close()
        cut_off = _rate(ground, options.seconds, settle_s=0)
        assert ground.database.unfinished() > 2 * options.concurrency, "the backlog ended early: submit more"
        proxy.open()
        ground.database.wait_until_finished(600)
        ground.database.assert_each_completed_once(submitted)
        lost = ground.database.value("SELECT count(*) FROM attempts WHERE outcome = 'lost'")
        relay = (ground.stack.directory / "relay0.log").read_text()
        print(f"one worker alone: {alone:.0f} jobs/s; two: {both:.0f} jobs/s")
        print(f"one of two cut off for {options.seconds:g} s: {cut_off:.0f} jobs/s, {cut_off / alone:.0%} of one alone")
        print(f"{submitted} jobs, each completed once; {lost} attempts lost with the lease, ", end="")
        print(f"{relay.count('relay.republished')} times jobs published again")
        if cut_off < BOUND * alone:
            raise SystemExit(f"below {BOUND:.0%}")


def _submit(ground: Ground, jobs: int) -> int:
    ground.database.submit(f"prompt {number}" for number in range(jobs))
    ground.stack.wake()
    return jobs


def _workers(ground: Ground) -> int:
    return int(ground.database.value("SELECT count(*) FROM processes WHERE role = 'worker'"))


def _rate(ground: Ground, seconds: float, settle_s: float = _SETTLE_S) -> float:
    """Completed jobs per second."""
    time.sleep(settle_s)
    before, began_at = ground.database.count("completed"), time.monotonic()
    time.sleep(seconds)
    return (ground.database.count("completed") - before) / (time.monotonic() - began_at)


if __name__ == "__main__":
    main()
