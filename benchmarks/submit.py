"""Durable submissions per second: one API process against the naive design, turn by turn.

    python -m benchmarks.submit [--requests 6000] [--rounds 5]

Both take the same bodies over 32 keep-alive connections, with one uvicorn process each, on one Postgres with fsync.
Headrace authenticates, validates, routes and prices as well. Bound: 3 x the naive rate; aim: 5 x.
"""

from argparse import ArgumentParser
from statistics import median

from benchmarks.ground import common_ground, print_fsync, print_machine, spread
from benchmarks.load import LoadResult, run_load
from models.database import dump_json

CATALOG: dict[str, dict[str, object]] = {"echo": {}}


def bodies(number: int) -> list[bytes]:
    """Submissions of about 200 bytes."""
    text = "Classify the sentiment of this review: the wheel turns, the mill grinds, and nothing is lost. "
    return [dump_json({"prompt": f"{text}{n}", "model": "auto", "max_tokens": 64}).encode() for n in range(number)]


def main() -> None:
    """Measure and print."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    results: dict[str, list[LoadResult]] = {"headrace": [], "naive": []}
    with common_ground() as ground:
        print_machine()
        print_fsync(ground.database.url)
        ground.stack.catalog(CATALOG)
        _, headrace = ground.stack.api()
        _, naive = ground.stack.api(app="benchmarks.naive:app", factory=False)
        ports = {"headrace": int(headrace.rsplit(":", 1)[1]), "naive": int(naive.rsplit(":", 1)[1])}
        payload = bodies(options.requests)
        for port in ports.values():
            run_load("127.0.0.1", port, "/v1/jobs", payload[:500], api_key=ground.database.api_key)
        for _ in range(options.rounds):
            for name, port in ports.items():
                result = run_load("127.0.0.1", port, "/v1/jobs", payload, api_key=ground.database.api_key)
                assert result.statuses == {202: options.requests}, result.statuses
                results[name].append(result)
        recorded = ground.database.value("SELECT count(*) FROM jobs")
        assert recorded == options.requests * options.rounds + 500, recorded
    for name, runs in results.items():
        p50, p99 = (median(run.percentile_ms(percent) for run in runs) for percent in (50, 99))
        print(f"{name:>9}: {spread([run.rate for run in runs])} requests/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    ratios = [ours.rate / theirs.rate for ours, theirs in zip(*results.values(), strict=True)]
    print(f"ratio, round by round: median {median(ratios):.2f}, {min(ratios):.2f}-{max(ratios):.2f} (bound 3, aim 5)")


if __name__ == "__main__":
    main()
