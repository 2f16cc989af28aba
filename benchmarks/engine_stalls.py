"""What running jobs feel of a long prompt, the time to a first token, the load of a model, and its memory.

    python -m benchmarks.engine_stalls [--model smollm2|gemma|<path>] [--rounds 3]

Bounds: while a prompt of 1,500 tokens is read among 8 running jobs, no gap between two tokens of theirs is longer than
3 x their normal step; the first token of a 50-token prompt on an idle engine within 200 ms; a load (warm page cache)
within 2 s; weights mapped once and not copied, and at most 200 MB held beyond them and the KV cache.
"""

import os
import threading
import time
from argparse import Namespace
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles

from benchmarks.engine_work import (
    MB,
    LocalModel,
    engine_parser,
    local_model,
    make_prompts,
    memory,
    prepare_output,
    verdict,
    word_tokens,
)
from benchmarks.ground import print_machine
from workers.engine.engine import Engine, EngineOptions
from workers.engine.model import Model
from workers.engine.sampling import GREEDY
from workers.engine.sequence import Ticket, Work

WINDOW, CELLS = 2048, 8192
RUNNING, LONG, SHORT = 8, 1500, 50
FIRST_TOKENS = 25
MOST_STALL, MOST_FIRST_TOKEN_S, MOST_LOAD_S, MOST_OVERHEAD_MB = 3.0, 0.2, 2.0, 200.0


@dataclass
class Listener:
    """When a job's pieces of text came."""

    times: list[float] = field(default_factory=list)

    def __call__(self, _text: str) -> None:
        self.times.append(time.monotonic())

    def gaps(self, since: float, until: float) -> list[tuple[float, float]]:
        """The pauses that touch an interval, in seconds, each with when it began, counted from the interval's begin."""
        touching = (pair for pair in pairwise(self.times) if pair[1] > since and pair[0] < until)
        return [(after - before, before - since) for before, after in touching]


@dataclass(frozen=True, slots=True)
class Stall:
    """One arrival of a long prompt: the gaps of the others without and with it, and its time to first token."""

    before: list[float]
    during: list[float]
    longest_at_s: float
    first_token_s: float

    @property
    def ratio(self) -> float:
        """The longest gap during, in normal steps."""
        return max(self.during) / median(self.before)

    @property
    def share_above(self) -> float:
        """The share of the gaps during that were above the bound."""
        return sum(gap > MOST_STALL * median(self.before) for gap in self.during) / len(self.during)


def engine_for(model: LocalModel, threads: int) -> Engine:
    """An engine as in the measurement of stalls."""
    loaded = Model.load(model.path, chat_template=model.chat_template)
    return Engine(loaded, EngineOptions(parallel=16, cells=CELLS, context_window=WINDOW, threads=threads))


def measure_stall(engine: Engine, vocabulary: tuple[list[int], list[int]], seed: str) -> Stall:
    """Let 8 jobs run, send the long prompt, and listen until its first token."""
    engine.forget()
    listeners = [Listener() for _ in range(RUNNING)]
    shorts = make_prompts(*vocabulary, RUNNING, 0, SHORT, seed)
    (long,) = make_prompts(*vocabulary, 1, 0, LONG, f"{seed} long")
    jobs = [
        engine.submit(Work(prompt, 480, GREEDY, ignore_eos=True), listener)
        for prompt, listener in zip(shorts, listeners, strict=True)
    ]
    while any(job.output_tokens < 10 for job in jobs):
        time.sleep(0.01)
    steady = time.monotonic()
    while any(job.output_tokens < 60 for job in jobs):
        time.sleep(0.01)
    sent = time.monotonic()
    ticket = engine.submit(Work(long, 4, GREEDY, ignore_eos=True))
    while ticket.first_token_at is None:
        assert not jobs[0].future.done(), "the running jobs ended before the long prompt was read"
        time.sleep(0.01)
    first = ticket.first_token_at
    for job in jobs:
        job.cancel()
    ticket.future.result(60)
    before = [gap for listener in listeners for gap, _ in listener.gaps(steady, sent)]
    during = [pair for listener in listeners for pair in listener.gaps(sent, first)]
    return Stall(before, [gap for gap, _ in during], max(during)[1], first - sent)


def print_stalls(engine: Engine, vocabulary: tuple[list[int], list[int]], rounds: int) -> bool:
    """Measure and print the stalls; whether all are within the bound."""
    measure_stall(engine, vocabulary, "warm-up")
    stalls = [measure_stall(engine, vocabulary, str(number)) for number in range(rounds)]
    for number, one in enumerate(stalls):
        normal, late = median(one.before), quantiles(one.during, n=100, method="inclusive")
        print(
            f"round {number + 1}: normal step {_ms(normal)} (longest {_ms(max(one.before))}); with the long prompt:"
            f" median {_ms(median(one.during))}, p99 {_ms(late[98])}, longest {_ms(max(one.during))} ="
            f" {one.ratio:.2f} x, after {one.longest_at_s:.1f} s; its first token after {one.first_token_s:.1f} s"
        )
    worst, above = max(one.ratio for one in stalls), max(one.share_above for one in stalls)
    print(f"gaps above {MOST_STALL:g} normal steps, in the round with most of them: {above:.1%}")
    print(f"longest gap / normal step: {worst:.2f} (bound {MOST_STALL:g}): {verdict(worst <= MOST_STALL)}")
    return worst <= MOST_STALL


def print_first_tokens(engine: Engine, vocabulary: tuple[list[int], list[int]]) -> bool:
    """Measure and print the time to the first token on an idle engine; whether the longest is within the bound."""
    engine.forget()
    prompts = make_prompts(*vocabulary, FIRST_TOKENS + 1, 0, SHORT, "first tokens")
    times = [_first_token_s(engine, prompt) for prompt in prompts][1:]
    engine.forget()
    within = max(times) <= MOST_FIRST_TOKEN_S
    print(
        f"first token of {SHORT} tokens, idle: median {_ms(median(times))}, longest of {len(times)} {_ms(max(times))}"
        f" (bound {_ms(MOST_FIRST_TOKEN_S)}): {verdict(within)}"
    )
    return within


def _first_token_s(engine: Engine, prompt: tuple[int, ...]) -> float:
    time.sleep(0.05)  # idle
    sent = time.monotonic()
    ticket: Ticket = engine.submit(Work(prompt, 2, GREEDY, ignore_eos=True))
    ticket.future.result(60)
    assert ticket.first_token_at is not None
    assert ticket.cached_tokens <= 1, "a beginning was reused"  # the token that every prompt starts with
    return ticket.first_token_at - sent


def measure_load(model: LocalModel, threads: int) -> tuple[Engine, bool]:
    """Load a model that is in the page cache, look at the memory; the engine, and whether all is within the bounds."""
    size = len(model.path.read_bytes())  # into the page cache
    before = memory(model.path)
    started = time.monotonic()
    engine = engine_for(model, threads)
    took = time.monotonic() - started
    engine.submit(Work(range(1000, 1600), 8, GREEDY, ignore_eos=True)).future.result(
        60
    )  # so that all buffers are in use
    held = memory(model.path)
    cache = CELLS * engine.model.bytes_per_cell
    beyond = held.resident - held.mapped - cache
    in_time, lean = took <= MOST_LOAD_S, beyond <= MOST_OVERHEAD_MB * MB
    copied = held.anonymous - before.anonymous - cache
    shared = held.mapped >= 0.9 * size and copied < 0.9 * size and _mappings(model.path) == 1
    print(f"load, warm page cache: {took:.2f} s (bound {MOST_LOAD_S:g} s): {verdict(in_time)}")
    print(
        f"weights of {size / MB:.0f} MB: {held.mapped / MB:.0f} MB mapped from the file by {_mappings(model.path)}"
        f" mapping; anonymous memory grew by {copied / MB:.0f} MB beside the KV cache: {verdict(shared)}"
    )
    print(
        f"resident {held.resident / MB:.0f} MB - weights {held.mapped / MB:.0f} - KV cache {cache / MB:.0f} ="
        f" {beyond / MB:.0f} MB, of which {before.resident / MB:.0f} before the load"
        f" (bound {MOST_OVERHEAD_MB:g}): {verdict(lean)}"
    )
    return engine, in_time and lean and shared


def _mappings(path: Path) -> int:
    """How many separate mappings of a file this process has; touching ranges of one mapping count as one."""
    name, ends, number = str(path.resolve()), set(), 0
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        if line.endswith(name):
            begin, end = line.split()[0].split("-")
            number += begin not in ends
            ends.add(end)
    return number


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def parse() -> Namespace:
    """The command line."""
    parser = engine_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="arrivals of a long prompt")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = parse()
    model = local_model(options.model)
    print_machine()
    print(f"{model.path.name}, {options.threads} threads, OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY')}")
    prepare_output()
    engine, loaded = measure_load(model, options.threads)
    try:
        vocabulary = word_tokens(model)
        passed = [loaded, print_first_tokens(engine, vocabulary), print_stalls(engine, vocabulary, options.rounds)]
    finally:
        engine.close()
    assert threading.active_count() == 1, "the engine left a thread"
    if not all(passed):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
