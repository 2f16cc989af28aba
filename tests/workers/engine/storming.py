"""A storm of random jobs on one engine, and what must be true of every one of them."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson

from models.errors import FailureCode
from tests.workers.engine.reference import Plain, Tokens, find_differences, measure_noise
from workers.engine.engine import Engine, EngineOptions
from workers.engine.errors import EngineError
from workers.engine.grammar import grammar_for
from workers.engine.model import Model
from workers.engine.sampling import GREEDY, Sampling
from workers.engine.sequence import Completion, Ticket, Work

WINDOW, CELLS, PARALLEL = 128, 640, 12
"""Little room, so that jobs wait for cells and kept beginnings are pushed out."""

SUBMITTERS = 4
MOST_TOKENS = 8
_END_TIMEOUT_S = 60.0
_KINDS = {"greedy": 30, "sampled": 25, "stops": 15, "grammar": 15, "cancelled": 10, "invalid": 5}
_STOPS = ((".",), (" the", "\n"), ("e",), ("a b", "tion", ","), ("never to be seen",))
_SAMPLINGS = (
    Sampling(temperature=0.7),
    Sampling(temperature=1.3, top_k=20, min_p=0.0),
    Sampling(temperature=0.0, repeat_penalty=1.3),
    Sampling(temperature=0.9, top_p=0.5, frequency_penalty=0.5, presence_penalty=0.5),
)
_MOST_LIKELY = 80
"""Every sampling above keeps at most the 40 likeliest tokens; penalties and numeric noise move some in and out."""

SCHEMA: dict[str, Any] = {  # Any: a JSON Schema
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
_INVALID: dict[str, FailureCode] = {
    "too long": FailureCode.CONTEXT_LENGTH_EXCEEDED,
    "empty": FailureCode.PROVIDER_REJECTED,
    "unknown token": FailureCode.PROVIDER_REJECTED,
    "bad grammar": FailureCode.PROVIDER_REJECTED,
}


@dataclass(frozen=True, slots=True)
class Order:
    """A job of the storm; cancelled after some seconds, or refused with ``refusal``."""

    kind: str
    work: Work
    cancel_after_s: float | None = None
    refusal: FailureCode | None = None


@dataclass(slots=True)
class Flight:
    """An order that the engine has taken."""

    order: Order
    ticket: Ticket
    cancel_at: float | None
    pieces: list[str]
    ends: int = 0

    def count_end(self, _future: object) -> None:
        self.ends += 1


@dataclass(slots=True)
class Tally:
    """How the jobs of a storm ended, what was wrong, and some answers to compute again."""

    ends: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    answered: list[tuple[Order, Completion]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def jobs(self) -> int:
        return sum(self.ends.values())

    def note(self, end: str) -> None:
        with self.lock:
            self.ends[end] += 1

    def wrong(self, order: Order, problem: str) -> None:
        with self.lock:
            self.problems.append(f"{order.kind}: {problem}")


class Storm:
    """Random orders from several threads, each with its own dice; the same seed gives the same orders."""

    def __init__(self, model: Model, threads: int, seed: str) -> None:
        self.engine = Engine(
            model, EngineOptions(parallel=PARALLEL, cells=CELLS, context_window=WINDOW, threads=threads)
        )
        self.tally = Tally()
        self._model = model
        self._seed = seed
        self._words = model.tokenize(" the river carries what the mill has ground and the town is glad of bread " * 3)
        self._beginnings = [self._some(random.Random(f"{seed} {n}"), 8 * n) for n in range(6)]
        self._grammar = grammar_for({"type": "json_schema", "json_schema": {"schema": SCHEMA}})

    def run(self, jobs: int, keep: int) -> None:
        """Send so many jobs and wait for their ends; up to ``keep`` answers of each kind are kept."""
        shares = [jobs // SUBMITTERS + (n < jobs % SUBMITTERS) for n in range(SUBMITTERS)]
        seed = f"{self._seed} {self.tally.jobs}"
        threads = [
            threading.Thread(target=self._submit_all, args=(random.Random(f"{seed} {n}"), share, keep))
            for n, share in enumerate(shares)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def leaks(self) -> list[str]:
        """What the engine still holds once nothing runs and nothing is kept, and steps that failed, as none should for
        want of a cell; looks underneath on purpose."""
        self.engine.forget()
        stats = self.engine.stats
        left = {name: getattr(stats, name) for name in ("cells_used", "sequences_running", "sequences_kept")}
        left |= {"orders_waiting": stats.orders_waiting, "jobs": self.engine.jobs, "steps failed": stats.failed_steps}
        context = self.engine._context
        left |= {f"tokens of sequence {slot}": context.length(slot) for slot in range(2 * PARALLEL)}
        return [f"{name} = {value}" for name, value in left.items() if value]

    def close_with_jobs(self, jobs: int) -> list[str]:
        """Close the engine while jobs wait and run; what is wrong with their ends."""
        dice = random.Random(self._seed)
        flights = [self._take_off(self._order(dice, "greedy")) for _ in range(jobs)]
        self.engine.close()
        ends = [(flight.ticket.future.done(), flight.ends) for flight in flights if flight is not None]
        return [f"a job of a closed engine: done {done}, ended {times} times" for done, times in ends if times != 1]

    def _submit_all(self, dice: random.Random, jobs: int, keep: int) -> None:
        flights: list[Flight] = []
        most = 1
        for number in range(jobs):
            if number % 25 == 0:
                most = dice.choice((1, 3, 6, 12))
            kind = dice.choices(list(_KINDS), list(_KINDS.values()))[0]
            flight = self._take_off(self._order(dice, kind))
            if flight is not None:
                flights.append(flight)
            self._wait(flights, most, keep)
        self._wait(flights, 1, keep)

    def _wait(self, flights: list[Flight], most: int, keep: int) -> None:
        """Cancel what is due, and land what has ended, until fewer than ``most`` are in the air."""
        deadline = time.monotonic() + _END_TIMEOUT_S
        while True:
            now = time.monotonic()
            for flight in list(flights):
                if flight.cancel_at is not None and now >= flight.cancel_at:
                    flight.ticket.cancel()
                if flight.ends:
                    flights.remove(flight)
                    self._land(flight, keep)
                elif now > deadline:
                    flights.remove(flight)
                    self.tally.wrong(flight.order, f"no end within {_END_TIMEOUT_S:g} s")
            if len(flights) < most:
                return
            time.sleep(0.003)

    def _take_off(self, order: Order) -> Flight | None:
        pieces: list[str] = []
        try:
            ticket = self.engine.submit(order.work, pieces.append)
        except EngineError as error:
            self.tally.note("refused")
            if error.code is not order.refusal:
                self.tally.wrong(order, f"refused: {error}")
            return None
        if order.refusal is not None:
            self.tally.wrong(order, "was not refused")
        cancel_at = None if order.cancel_after_s is None else time.monotonic() + order.cancel_after_s
        flight = Flight(order, ticket, cancel_at, pieces)
        ticket.future.add_done_callback(flight.count_end)
        return flight

    def _land(self, flight: Flight, keep: int) -> None:
        order = flight.order
        if flight.ends != 1:
            self.tally.wrong(order, f"ended {flight.ends} times")
        try:
            completion = flight.ticket.future.result(0)
        except CancelledError:
            self.tally.note("cancelled")
            if order.cancel_after_s is None:
                self.tally.wrong(order, "cancelled by nobody")
            return
        except EngineError as error:
            self.tally.note("failed")
            self.tally.wrong(order, f"failed: {error}")
            return
        self.tally.note(completion.finish_reason)
        for problem in self._problems(flight, completion):
            self.tally.wrong(order, problem)
        with self.tally.lock:
            if sum(known.kind == order.kind for known, _ in self.tally.answered) < keep:
                self.tally.answered.append((order, completion))

    def _problems(self, flight: Flight, completion: Completion) -> list[str]:
        """What is wrong with an answer by itself."""
        work, ticket = flight.order.work, flight.ticket
        whole = b"".join(map(self._model.piece, completion.tokens)).decode(errors="replace")
        ends = [at for stop in work.stop if (at := whole.find(stop)) >= 0]
        checks = {
            f"text {completion.text!r} of tokens that say {whole!r}": completion.text
            == whole[: min(ends, default=None)],
            f"streamed {flight.pieces!r}": "".join(flight.pieces) == completion.text,
            f"{len(completion.tokens)} tokens of {work.max_tokens}": len(completion.tokens) <= work.max_tokens,
            f"{ticket.prompt_tokens} prompt tokens counted": ticket.prompt_tokens == len(work.prompt),
            f"{ticket.output_tokens} output tokens counted": ticket.output_tokens == len(completion.tokens),
            f"{ticket.cached_tokens} cached tokens": 0 <= ticket.cached_tokens < len(work.prompt),
            "ended early for its length": completion.finish_reason == "stop"
            or len(completion.tokens) == work.max_tokens,
            f"not of the schema: {completion.text!r}": work.grammar is None or _fits(completion),
        }
        return [problem for problem, right in checks.items() if not right]

    def _order(self, dice: random.Random, kind: str) -> Order:
        beginning = dice.choice(self._beginnings)
        prompt = (*beginning, *self._some(dice, dice.randint(1, 12)))
        most = dice.randint(1, MOST_TOKENS)
        if kind == "invalid":
            return self._invalid(dice, prompt)
        if kind == "grammar":
            return Order(kind, Work(prompt, 16, dice.choice((GREEDY, _SAMPLINGS[0])), grammar=self._grammar))
        if kind == "stops":
            return Order(kind, Work(prompt, 2 * most, dice.choice((GREEDY, *_SAMPLINGS)), dice.choice(_STOPS)))
        if kind == "cancelled":
            long = Work(prompt, WINDOW - len(prompt), dice.choice((GREEDY, _SAMPLINGS[1])), ignore_eos=True)
            return Order(kind, long, cancel_after_s=dice.choice((0.0, dice.random(), 0.3 * dice.random())))
        if kind == "sampled":
            chosen = dice.choice(_SAMPLINGS)
            seeded = replace(chosen, seed=dice.getrandbits(32))
            return Order(kind, Work(prompt, most, dice.choice((chosen, seeded))))
        return Order(kind, Work(prompt, most, GREEDY))

    def _invalid(self, dice: random.Random, prompt: Tokens) -> Order:
        what = dice.choices(list(_INVALID), (4, 4, 4, 1))[0]  # llama.cpp writes of bad grammars to the terminal
        bad: dict[str, Callable[[], Work]] = {
            "too long": lambda: Work(prompt * WINDOW, 4, GREEDY),
            "empty": lambda: Work((), 4, GREEDY),
            "unknown token": lambda: Work((*prompt, self._model.vocabulary), 4, GREEDY),
            "bad grammar": lambda: Work(prompt, 4, GREEDY, grammar="root ::= nowhere ("),
        }
        return Order(f"invalid, {what}", bad[what](), refusal=_INVALID[what])

    def _some(self, dice: random.Random, number: int) -> Tokens:
        return tuple(dice.choices(self._words, k=number))


def answers_not_its_own(plain: Plain, answered: Sequence[tuple[Order, Completion]], number: int) -> list[str]:
    """Compute a sample of answers again, each alone: greedy ones must be the same up to ties, and the tokens of
    sampled ones among the likeliest for their prompt. What is wrong."""
    greedy = [
        (tuple(order.work.prompt), order.work.max_tokens, done.tokens)
        for order, done in answered
        if order.kind == "greedy"
    ][:number]
    prompts = [prompt for prompt, _, _ in greedy]
    expected = [plain.greedy(prompt, most) for prompt, most, _ in greedy]
    differences = find_differences(plain, prompts, expected, [tokens for _, _, tokens in greedy])
    noise = measure_noise(plain, [(prompt, right[:1]) for prompt, right in zip(prompts, expected, strict=True)])
    wrong = [f"greedy: {one} beyond the noise of {noise.most:.3f}" for one in differences if not noise.ties(one)]
    sampled = [pair for pair in answered if pair[0].kind == "sampled"][:number]
    return wrong + [problem for order, done in sampled for problem in _unlikely(plain, order, done.tokens)]


def _unlikely(plain: Plain, order: Order, answer: Tokens) -> list[str]:
    found = []
    for at, token in enumerate(answer):
        logits = plain.forms[0](tuple(order.work.prompt), answer[:at])
        rank = int(np.sum(logits > logits[token]))
        if rank > _MOST_LIKELY:
            found.append(f"sampled: token {at} of an answer is only the {rank}th likeliest")
    return found


def _fits(completion: Completion) -> bool:
    """Whether an answer is of :data:`SCHEMA`; one that was cut for its length need not be."""
    if completion.finish_reason == "length":
        return True
    try:
        value = orjson.loads(completion.text)
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and value.keys() == {"ok"} and isinstance(value["ok"], bool)
