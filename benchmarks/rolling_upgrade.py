"""A rolling upgrade under load: the processes of another revision on this checkout's schema, then replaced one by one.

    python -m benchmarks.rolling_upgrade [REVISION] [--seconds 10]

Old API, relay and worker run on the old schema under load: single jobs, uploaded batches, every list. Then this
checkout migrates the database, and its API, worker and relay take the place of the old ones, in the order of
docs/upgrades.md. Bounds: no failed request, no failed job. The old processes' `/readyz` is not asked: whether it
takes a newer schema for ready is the old code's matter.
"""

import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path

from api.local.postgres import EmbeddedPostgres
from api.local.valkey import EmbeddedValkey
from benchmarks.ground import print_machine
from tests.revisions import PREVIOUS, RevisionError, commit_of, exported
from tests.upgrade import Load, upgrade


def _say(stage: str, load: Load) -> None:
    print(
        f"{stage:32} {load.requests:6} requests, {len(load.jobs):6} jobs, {len(load.batches):4} batches,"
        f" slowest request {load.slowest_s:.2f} s, {len(load.problems)} problems",
        flush=True,
    )
    load.slowest_s = 0.0


def run(revision: str, seconds: float) -> bool:
    """Upgrade, and print; whether nothing failed."""
    with exported(revision) as root, tempfile.TemporaryDirectory(prefix="headrace-upgrade-") as temporary:
        directory = Path(temporary)
        directory.chmod(0o711)  # for the servers' own account
        postgres, valkey = EmbeddedPostgres(directory / "servers"), EmbeddedValkey(directory / "servers")
        try:
            urls = postgres.start(), valkey.start()
            load = upgrade(root, urls, directory, callers=8, each_s=seconds, said=_say)
        finally:
            valkey.stop()
            postgres.stop()
    for problem in load.problems[:20]:
        print(problem)
    print(f"no failed request, no failed job: {'FAIL' if load.problems else 'PASS'}")
    return not load.problems


def main() -> None:
    """Measure and print."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("revision", nargs="?", default=PREVIOUS)
    parser.add_argument("--seconds", type=float, default=10, help="load between two steps")
    options = parser.parse_args()
    try:
        print_machine()
        print(f"from {commit_of(options.revision)} to this checkout, {commit_of('HEAD')} and what is not committed")
        sys.exit(not run(options.revision, options.seconds))
    except RevisionError as error:
        sys.exit(f"rolling_upgrade: {error}")


if __name__ == "__main__":
    main()
