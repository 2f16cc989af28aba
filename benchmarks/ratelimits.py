"""Submissions per second of a key with rate limits and of one without, turn by turn.

    python -m benchmarks.ratelimits [--requests 4000] [--rounds 5]

One API process, 32 keep-alive connections, the same bodies. The limits are high enough to refuse nobody, so that
both record every job; a key without a plan asks nobody, so its rate is that of ``benchmarks.submit``.
"""

import asyncio
from argparse import ArgumentParser
from statistics import median

from benchmarks.ground import common_ground, print_fsync, print_machine, spread
from benchmarks.load import LoadResult, run_load
from benchmarks.submit import CATALOG, bodies
from models.account import create_key
from models.database import create_engine
from tests.stack import Database

PLAN = """
[plans.ample]
requests_per_minute = 100000000
tokens_per_minute = 1000000000
requests_per_day = 100000000
"""


async def limited_key(database: Database) -> str:
    """A key of the development tenant with all three limits."""
    engine = create_engine(database.url, name="bench", pool_size=1)
    try:
        return await create_key(engine, database.tenant_id, "limited", "ample")
    finally:
        await engine.dispose()


def main() -> None:
    """Measure and print."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with common_ground() as ground:
        print_machine()
        print_fsync(ground.database.url)
        ground.stack.catalog(CATALOG)
        with (ground.stack.directory / "catalog.toml").open("a", encoding="utf-8") as catalog:
            catalog.write(PLAN)
        _, url = ground.stack.api()
        port = int(url.rsplit(":", 1)[1])
        keys = {"unlimited": ground.database.api_key, "limited": asyncio.run(limited_key(ground.database))}
        results: dict[str, list[LoadResult]] = {name: [] for name in keys}
        payload = bodies(options.requests)
        for key in keys.values():
            run_load("127.0.0.1", port, "/v1/jobs", payload[:500], api_key=key)
        for _ in range(options.rounds):
            for name, key in keys.items():
                result = run_load("127.0.0.1", port, "/v1/jobs", payload, api_key=key)
                assert result.statuses == {202: options.requests}, result.statuses
                results[name].append(result)
    for name, runs in results.items():
        p50, p99 = (median(run.percentile_ms(percent) for run in runs) for percent in (50, 99))
        print(f"{name:>9}: {spread([run.rate for run in runs])} requests/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    ratios = [limited.rate / free.rate for free, limited in zip(*results.values(), strict=True)]
    print(f"limited / unlimited, round by round: median {median(ratios):.2f}, {min(ratios):.2f}-{max(ratios):.2f}")


if __name__ == "__main__":
    main()
