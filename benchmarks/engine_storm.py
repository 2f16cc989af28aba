"""10,000 random jobs on one engine: each ends once, nothing leaks, no texts are mixed, memory stays flat.

    python -m benchmarks.engine_storm [--jobs 10000] [--model smollm2|gemma|<path>]

Lengths, shared beginnings, samplings, stop strings, JSON grammars, cancellations and invalid jobs at random, from four
threads, on a cache so small that jobs wait for room; tests/workers/engine/storming.py has the rules. After every
thousand the engine must hold no cell and no sequence. At the end some answers are computed again, each alone.
"""

import time
from argparse import Namespace

from benchmarks.engine_work import MB, engine_parser, local_model, memory, peak_resident, prepare_output, verdict
from benchmarks.ground import print_machine
from tests.workers.engine.reference import Plain
from tests.workers.engine.storming import Storm, answers_not_its_own
from workers.engine.model import Model

PORTION = 1000
SETTLED = 2
"""Portions after which memory has settled: kept pieces of the vocabulary, native buffers, the allocator's arenas."""

MOST_GROWTH_MB = 20.0
KEPT, RECOMPUTED = 50, 20


def run(storm: Storm, jobs: int) -> list[float]:
    """Run the storm in portions, with a line for each; the resident MB after each."""
    resident = []
    done = 0
    while done < jobs:
        portion = min(PORTION, jobs - done)
        started = time.monotonic()
        storm.run(portion, KEPT)
        took = time.monotonic() - started
        done += portion
        storm.tally.problems += [f"after {done} jobs: {leak}" for leak in storm.leaks()]
        resident.append(memory().resident / MB)
        print(
            f"{done:>6} jobs, {portion / took:5.1f} jobs/s, resident {resident[-1]:.1f} MB,"
            f" ends {dict(sorted(storm.tally.ends.items()))}, problems {len(storm.tally.problems)}",
            flush=True,
        )
    return resident


def print_stats(storm: Storm) -> None:
    """What the engine has done."""
    stats = storm.engine.stats
    print(
        f"engine: {stats.steps} steps, {stats.prompt_tokens} prompt tokens computed and {stats.shared_tokens} shared,"
        f" {stats.output_tokens} generated, {stats.failed_steps} steps failed"
    )


def is_flat(resident: list[float]) -> bool:
    """Print how memory grew after it had settled; whether that is within the bound."""
    settled = resident[min(SETTLED, len(resident)) - 1 :]
    growth = max(settled) - settled[0]
    print(
        f"memory: grew by {growth:.1f} MB at most after the first {min(SETTLED, len(resident)) * PORTION} jobs, peak"
        f" {peak_resident() / MB:.0f} MB (bound {MOST_GROWTH_MB:g} MB): {verdict(growth <= MOST_GROWTH_MB)}"
    )
    return growth <= MOST_GROWTH_MB


def parse() -> Namespace:
    """The command line."""
    parser = engine_parser(__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--seed", default="1")
    return parser.parse_args()


def main() -> None:
    """Run, check and print."""
    options = parse()
    model = local_model(options.model)
    print_machine()
    prepare_output()
    started = time.monotonic()
    storm = Storm(Model.load(model.path, chat_template=model.chat_template), options.threads, options.seed)
    try:
        flat = is_flat(run(storm, options.jobs))
        print_stats(storm)
    finally:
        closed = storm.close_with_jobs(50)
    took = time.monotonic() - started
    with Plain(model.path, model.chat_template, flash_attention=True, threads=options.threads) as plain:
        foreign = answers_not_its_own(plain, storm.tally.answered, RECOMPUTED)
    problems = [*storm.tally.problems, *closed, *foreign]
    for problem in problems[:20]:
        print(f"PROBLEM {problem}")
    ended = storm.tally.jobs == options.jobs
    print(f"{storm.tally.jobs} of {options.jobs} jobs ended in {took:.0f} s: {verdict(ended)}")
    print(f"ended once, no leaks, no mixed texts, {2 * RECOMPUTED} answers computed again: {verdict(not problems)}")
    if problems or not (flat and ended):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
