"""The same 16 jobs through the whole platform, API to status, and on the bare engine, turn by turn.

    python -m benchmarks.engine_platform [--model smollm2|gemma|<path>] [--rounds 3]

The platform is what `headrace up` starts: servers, API, relay and worker. Jobs are chats whose prompts come to about
200 tokens, of which about 150 are the same for all 16, with 64 tokens to generate, greedily; chats that would end
earlier are passed over. They are POSTed at once and waited for at /status; the time runs from the first POST to the
last answer, and the tokens are those of the jobs' usage. The bare engine has the same model, sizes and chats, in a
process of its own. Every round has a beginning of its own. Bounds: 85 % of the engine's rate; the worker holds at most
200 MB beyond the weights, which are mapped, and the KV cache.
"""

import asyncio
import multiprocessing
import os
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any

import httpx

from api.local.stack import Running, StackOptions, running_stack
from benchmarks.engine_work import (
    MB,
    LocalModel,
    engine_parser,
    local_model,
    memory,
    prepare_output,
    quiet_logs,
    verdict,
)
from benchmarks.ground import print_machine, spread
from models.database import dump_json
from workers.engine.gguf import read_model_file

if TYPE_CHECKING:
    from workers.engine.engine import Engine
    from workers.engine.model import Model

JOBS, SHARED, WHOLE, OUTPUT = 16, 150, 200, 64
LEAST, MOST_BEYOND_MB = 0.85, 200.0
WINDOW, CELLS = 2048, 4352
CANDIDATES = 24
LLM = "measured"
WORDS = ("river", "mill", "wheel", "stone", "bread", "town", "flour", "water", "boat", "miller", "bridge", "spring")

Chat = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round generated, and in how many seconds."""

    tokens: int
    elapsed_s: float

    @property
    def rate(self) -> float:
        """Generated tokens per second."""
        return self.tokens / self.elapsed_s


def make_chats(model: "Model", dice: Random, number: int) -> list[Chat]:
    """Chats of about 200 tokens, whose first 150 or so are those of one system message."""
    system = "You tell long stories about all that is asked for, in many words, and never stop early."
    while len(model.prompt(_chat(system, ""))) < SHARED:
        system += f" Think of the {dice.choice(WORDS)} and the {dice.choice(WORDS)}."
    chats = []
    for place in range(number):
        text = f"{place}. Tell a long story of"
        while len(model.prompt(_chat(system, text))) < WHOLE:
            text += f" a {dice.choice(WORDS)} and"
        chats.append(_chat(system, text.removesuffix(" and")))
    return chats


def _chat(system: str, text: str) -> Chat:
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


def choose_chats(engine: "Engine", seed: str) -> list[Chat]:
    """16 chats to which the model's answer is at least as long as wanted."""
    chats = make_chats(engine.model, Random(seed), CANDIDATES)
    chosen = [chat for chat, tokens in zip(chats, _answers(engine, chats), strict=True) if tokens == OUTPUT]
    engine.forget()
    assert len(chosen) >= JOBS, f"only {len(chosen)} of {CANDIDATES} chats have long answers"
    return chosen[:JOBS]


def _answers(engine: "Engine", chats: list[Chat]) -> list[int]:
    """Generate the answers to chats that are submitted at once; how many tokens each has."""
    from workers.engine.sampling import GREEDY
    from workers.engine.sequence import Work

    works = [Work(engine.model.prompt(chat), OUTPUT, GREEDY) for chat in chats]
    tickets = [engine.submit(work) for work in works]
    return [len(ticket.future.result(600).tokens) for ticket in tickets]


def serve(pipe: Connection, model: LocalModel, threads: int) -> None:
    """The bare engine's process: answers with chats for a seed, and with the outcome of chats."""
    from workers.engine.engine import Engine, EngineOptions
    from workers.engine.model import Model

    quiet_logs()
    options = EngineOptions(parallel=JOBS, cells=CELLS, context_window=WINDOW, threads=threads)
    engine = Engine(Model.load(model.path, chat_template=model.chat_template), options)
    while (asked := pipe.recv()) is not None:
        if isinstance(asked, str):
            chats = choose_chats(engine, asked)
            prompts = [engine.model.prompt(chat) for chat in chats]
            shared = next(at for at, column in enumerate(zip(*prompts, strict=False)) if len(set(column)) > 1)
            pipe.send((chats, f"prompts of {min(map(len, prompts))}-{max(map(len, prompts))} tokens, {shared} shared"))
        else:
            engine.forget()
            started = time.monotonic()
            tokens = sum(_answers(engine, asked))
            pipe.send(Outcome(tokens, time.monotonic() - started))
    engine.close()


@contextmanager
def bare_engine(model: LocalModel, threads: int) -> Iterator[Connection]:
    """A pipe to a process with the bare engine."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, model, threads), daemon=True)
    process.start()
    try:
        yield ours
    finally:
        ours.send(None)
        process.join(30)


def ask(pipe: Connection, question: object) -> Any:  # Any: what the other process sends
    """Ask the bare engine's process; ends the program when it died."""
    pipe.send(question)
    while not pipe.poll(1.0):
        if not multiprocessing.active_children():
            raise SystemExit("the bare engine's process died")
    return pipe.recv()


async def run_platform(url: str, key: str, chats: list[Chat]) -> Outcome:
    """POST the chats as jobs at once and wait at /status until all are completed."""
    limits = httpx.Limits(max_connections=JOBS)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=120, trust_env=False) as client:
        started = time.monotonic()
        answered = await asyncio.gather(*(_run_job(client, chat) for chat in chats))
        return Outcome(sum(answered), time.monotonic() - started)


async def _run_job(client: httpx.AsyncClient, chat: Chat) -> int:
    body = {"messages": chat, "model": LLM, "max_tokens": OUTPUT, "temperature": 0, "fallbacks": []}
    job = (await client.post("/v1/jobs", json=body)).raise_for_status().json()
    while job["status"] in ("queued", "in_progress"):
        job = (await client.get(job["status_url"], params={"wait": 30})).raise_for_status().json()
    assert job["status"] == "completed", job["error"]
    return int(job["usage"]["output_tokens"])


def write_catalog(directory: Path, model: LocalModel, threads: int) -> Path:
    """A catalogue with the one model, in a pool of as many jobs as arrive together."""
    llm = {"tier": "small", "provider": "llamacpp", "source": str(model.path), "context_window": WINDOW}
    llm |= {"input_price": "0", "output_price": "0", "threads": threads}
    llm |= {"chat_template": model.chat_template} if model.chat_template else {}
    lines = ["[pools.cpu]", f"concurrency = {JOBS}", "[tiers.small]", 'queue = "small"', 'pool = "cpu"']
    lines += [f"[llms.{LLM}]", *(f"{name} = {dump_json(value)}" for name, value in llm.items())]
    lines += [f"[llms.{LLM}.engine]", f"parallel = {JOBS}", f"cells = {CELLS}"]
    path = directory / "catalog.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@contextmanager
def platform(model: LocalModel, threads: int) -> Iterator[Running]:
    """What `headrace up` starts, in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as directory:
        Path(directory).chmod(0o711)  # for the servers' own account
        os.environ["HEADRACE_CATALOG"] = str(write_catalog(Path(directory), model, threads))
        options = StackOptions(data_dir=Path(directory) / "data", flower=False)
        with running_stack(options, os.environ) as running:
            yield running


def measure(pipe: Connection, running: Running, rounds: int) -> tuple[list[Outcome], list[Outcome]]:
    """Rounds of both in turn, after one that is not counted: the platform's and the bare engine's."""
    key = running.key_file.read_text(encoding="utf-8").strip()
    ours: list[Outcome] = []
    bare: list[Outcome] = []
    for number in range(rounds + 1):
        chats, sizes = ask(pipe, str(number))
        if number % 2:
            ours.append(asyncio.run(run_platform(running.api_url, key, chats)))
        bare.append(ask(pipe, chats))
        if not number % 2:
            ours.append(asyncio.run(run_platform(running.api_url, key, chats)))
        print(
            f"{f'round {number}' if number else 'warm-up'}: {sizes}; platform {ours[-1].rate:.1f} tok/s"
            f" ({ours[-1].tokens} tokens), engine {bare[-1].rate:.1f} ({bare[-1].tokens})",
            flush=True,
        )
    return ours[1:], bare[1:]


def print_memory(model: LocalModel, running: Running) -> bool:
    """Print what the worker that holds the model holds; whether it is within the bound."""
    pid = running.supervisor.pid_of("worker-cpu")
    assert pid
    held, cache = memory(model.path, pid), CELLS * read_model_file(model.path).bytes_per_cell
    beyond = held.resident - held.mapped - cache
    print(
        f"worker: resident {held.resident / MB:.0f} MB - weights {held.mapped / MB:.0f} - KV cache {cache / MB:.0f} ="
        f" {beyond / MB:.0f} MB (bound {MOST_BEYOND_MB:g}): {verdict(beyond <= MOST_BEYOND_MB * MB)}"
    )
    return beyond <= MOST_BEYOND_MB * MB


def parse() -> Namespace:
    """The command line."""
    parser = engine_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = parse()
    model = local_model(options.model)
    print_machine()
    prepare_output()
    with bare_engine(model, options.threads) as pipe, platform(model, options.threads) as running:
        ours, bare = measure(pipe, running, options.rounds)
        lean = print_memory(model, running)
    for name, outcomes in (("platform", ours), ("engine", bare)):
        print(f"{name:>9}: {spread([outcome.rate for outcome in outcomes])} tok/s")
    ratios = [one.rate / other.rate for one, other in zip(ours, bare, strict=True)]
    passed = median(ratios) >= LEAST
    print(
        f"platform / engine, round by round: median {median(ratios):.2f}, {min(ratios):.2f}-{max(ratios):.2f}"
        f" (bound {LEAST:g}): {verdict(passed)}"
    )
    if not (passed and lean):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
