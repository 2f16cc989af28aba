"""Tokens per second of the local engine, beside Llama, xllamacpp and a bare decoding loop, turn by turn.

    python -m benchmarks.engine [--model smollm2|gemma|<path>] [--rounds 3] [--only engine,limit] [--gpu]

16 jobs arrive together, each with a prompt of 200 tokens, of which the first 150 are the same for all, and 64 tokens
to generate: greedy, past the model's own end, so that everyone generates as many. The rate counts generated tokens
over the time of the whole, prompts included. Every contestant runs in a fresh process, which first computes a few
short jobs that are not counted, then the counted wave, then one with the same beginning and other rests
("again": who keeps beginnings need not compute it). Rounds go through all contestants in turn.
Bounds: see BOUNDS, for the two models of the default catalogue.
"""

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median

from benchmarks.engine_contestants import CONTESTANTS, PARALLEL, Setting
from benchmarks.engine_work import (
    MB,
    LocalModel,
    Wave,
    engine_parser,
    local_model,
    make_prompts,
    memory,
    peak_resident,
    prepare_output,
    verdict,
    word_tokens,
)
from benchmarks.ground import print_machine

SHARED, OWN, OUTPUT = 150, 50, 64
LEAST = ("llama", "llama-reuse", "xllamacpp-16", "xllamacpp-8", "engine", "limit")
FORMS = {
    "llama": ("llama", "llama-fa"),
    "llama-reuse": ("llama-reuse", "llama-reuse-fa"),
    "xllamacpp": ("xllamacpp-16", "xllamacpp-8"),
    "limit": ("limit",),
}
"""Rivals whose best form counts: flash attention or not, 8 or 16 slots."""

BOUNDS = {
    "smollm2": {"llama-reuse": 1.8, "llama": 2.5, "xllamacpp": 1.0, "limit": 0.9},
    "gemma": {"llama-reuse": 3.3, "llama": 3.8, "xllamacpp": 1.0, "limit": 0.9},
}
"""How many times a rival's rate the engine's must be at least."""

OMP_WAIT = "OMP_WAIT_POLICY"


@dataclass(frozen=True, slots=True)
class WaveResult:
    """A wave that a contestant has computed; ``busy`` is the share of the threads' time that it really had."""

    name: str
    tokens: int
    prompt: int | None
    elapsed_s: float
    busy: float

    @property
    def rate(self) -> float:
        """Generated tokens per second."""
        return self.tokens / self.elapsed_s


@dataclass(frozen=True, slots=True)
class Run:
    """One contestant's process: its waves, and its memory in MB."""

    waves: dict[str, WaveResult]
    peak_mb: float
    anonymous_mb: float


def make_waves(words: list[int], start: list[int], seed: str, *, shared: bool) -> list[Wave]:
    """A wave to warm up with, the counted one, and one with the same beginning and other rests."""
    prefix, own = (SHARED, OWN) if shared else (0, SHARED + OWN)
    both = make_prompts(words, start, 2 * PARALLEL, prefix, own, seed)
    warm_up = make_prompts(words, start, PARALLEL, 0, 40, f"{seed} warm-up")
    return [
        Wave("warm-up", warm_up, 0, 8),
        Wave("first", both[:PARALLEL], prefix, OUTPUT),
        Wave("again", both[PARALLEL:], prefix, OUTPUT),
    ]


def compute(contestant: str, setting: Setting, waves: list[Wave]) -> Run:
    """What a contestant's process does."""
    results = {}
    with CONTESTANTS[contestant](setting) as run:
        for wave in waves:
            started, used = time.perf_counter(), time.process_time()
            done = run(wave)
            elapsed = time.perf_counter() - started
            busy = (time.process_time() - used) / elapsed / setting.threads
            assert done.output == wave.tokens, f"{contestant} generated {done.output} of {wave.tokens} tokens"
            results[wave.name] = WaveResult(wave.name, done.output, done.prompt, elapsed, busy)
        return Run(results, peak_resident() / MB, memory().anonymous / MB)


def as_process(contestant: str, options: Namespace, seed: str) -> Run:
    """Let a contestant run in a fresh process; ends the program when that fails."""
    environment = {name: value for name, value in os.environ.items() if name != OMP_WAIT}
    if options.omp_wait != "default":
        environment[OMP_WAIT] = options.omp_wait
    arguments = ["--run", contestant, "--seed", seed, "--model", options.model, "--threads", str(options.threads)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.engine", *arguments, *(["--gpu"] if options.gpu else [])],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"waves"')]
    if done.returncode or not lines:
        raise SystemExit(f"{contestant} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    found = json.loads(lines[-1])
    return Run({name: WaveResult(**wave) for name, wave in found.pop("waves").items()}, **found)


def run_contestant(options: Namespace, model: LocalModel) -> None:
    """The process of one contestant: compute and print."""
    words, start = word_tokens(model)
    waves = make_waves(words, start, options.seed, shared=not options.run.endswith("unshared"))
    if options.run in FORMS["llama"]:
        waves = waves[:2]  # with nothing kept, the second is the first again
    setting = Setting(model, options.threads, options.gpu, SHARED + OWN + OUTPUT)
    print(json.dumps(asdict(compute(options.run, setting, waves))), flush=True)
    sys.stdout.flush()
    os._exit(0)  # a native server's threads need not be waited for


def print_run(name: str, runs: list[Run]) -> None:
    """A line of the table: rates of the waves, and memory."""
    columns = [f"{name:>16}"]
    for wave in ("first", "again"):
        rates = [run.waves[wave].rate for run in runs if wave in run.waves]
        columns.append(f"{median(rates):6.1f} {max(rates):6.1f}" if rates else " " * 13)
    prompt = {run.waves["first"].prompt for run in runs}
    busy = median(run.waves["first"].busy for run in runs)
    columns += [f"{'/'.join(map(str, sorted(filter(None, prompt)))):>9}", f"{busy:5.0%}"]
    columns += [f"{max(run.peak_mb for run in runs):7.0f}", f"{max(run.anonymous_mb for run in runs):7.0f}"]
    print("  ".join(columns))


def print_table(results: dict[str, list[Run]]) -> None:
    """Everything side by side."""
    print("\ntok/s:                 first wave      again        prompt   cpu   peak RSS  anonymous")
    print("                     median   best  median  best    tokens   had       MB        MB")
    for name, runs in results.items():
        print_run(name, runs)


def ratios(results: dict[str, list[Run]], rival: str, wave: str) -> list[float]:
    """How many times a rival's rate the engine reached, round by round; the rival's best form counts."""
    forms = [results[name] for name in FORMS[rival] if name in results]
    found = []
    for number, ours in enumerate(results.get("engine", [])):
        rates = [form[number].waves[wave].rate for form in forms if wave in form[number].waves]
        if rates:
            found.append(ours.waves[wave].rate / max(rates))
    return found


def print_verdicts(results: dict[str, list[Run]], bounds: dict[str, float]) -> bool:
    """The ratios that are asked for; whether all are reached."""
    passed = True
    print()
    for rival in FORMS:
        for wave in ("first", "again"):
            found = ratios(results, rival, wave)
            if not found:
                continue
            line = f"engine / {rival + ', ' + wave:<20} median {median(found):.2f} ({min(found):.2f}-{max(found):.2f})"
            bound = bounds.get(rival) if wave == "first" or rival == "xllamacpp" else None
            if bound is not None:
                passed &= median(found) >= bound
                line += f"  bound {bound:g}: {verdict(median(found) >= bound)}"
            print(line)
    return passed


def chosen(options: Namespace) -> Iterator[str]:
    """The contestants that take part, in order."""
    wanted = options.only.split(",") if options.only else LEAST if options.quick else CONTESTANTS
    for name in wanted:
        if name not in CONTESTANTS:
            raise SystemExit(f"--only: there is no {name!r}, but {', '.join(CONTESTANTS)}")
        yield name


def parse() -> Namespace:
    """The command line."""
    parser = engine_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help=f"some of: {', '.join(CONTESTANTS)}")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(LEAST)}")
    parser.add_argument("--gpu", action="store_true", help="all layers on the GPU, and flash attention, for everyone")
    parser.add_argument("--omp-wait", choices=("passive", "active", "default"), default="default")
    parser.add_argument("--run", choices=CONTESTANTS, help="the process of one contestant: prints JSON")
    parser.add_argument("--seed", default="1", help="of the prompts, with --run")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = parse()
    model = local_model(options.model)
    if options.run:
        run_contestant(options, model)
    print_machine()
    print(f"{model.path.name}, {options.threads} threads, {OMP_WAIT}={options.omp_wait}{', GPU' * options.gpu}")
    prepare_output()
    results: dict[str, list[Run]] = {name: [] for name in chosen(options)}
    for number in range(options.rounds):
        for name, runs in results.items():
            runs.append(as_process(name, options, seed=str(number)))
            rates = ", ".join(f"{wave.name} {wave.rate:.1f}" for wave in runs[-1].waves.values())
            print(f"round {number + 1}: {name:>16}: {rates}", flush=True)
    print_table(results)
    if not print_verdicts(results, BOUNDS.get(options.model, {})):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
