"""What the engine's greedy answers are compared with: llama-cpp-python's ``Llama``, one prompt at a time.

Logits differ in their last bits with the batch that computes them and with what else is in the cache, so two right
answers may part where two tokens are (nearly) equally likely. To tell these from faults, the logits after the common
beginning are computed anew in several forms: by ``Llama`` as when it answered, all at once, and little by little; by a
context of the engine's kind alone; and in company, where llama.cpp computes other sequences in the same batches. A
difference is a tie if one form prefers the engine's token too, or all prefer the other by less than what such gaps
move by between the forms. None of them uses the engine's scheduling or its sharing of beginnings.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
from llama_cpp import Llama
from llama_cpp import llama_cpp as llama

from workers.engine.context import Context, ContextSize
from workers.engine.engine import Engine
from workers.engine.model import Model
from workers.engine.sampling import GREEDY
from workers.engine.sequence import Work

Tokens = tuple[int, ...]
Logits = npt.NDArray[np.float32]
Form = Callable[[Tokens, Tokens], Logits]
"""A way to compute the logits after a prompt and the beginning of an answer."""

WINDOW = 1024
_BATCH = 512
_COMPANIONS = 4
_COMPANION_LENGTH = 120
_PIECE = 48
_LITTLE = 16
_LAST = 2
_SYSTEMS = (
    "",
    "You are a careful editor. Answer in one short sentence, in plain words, and never repeat the question. ",
    """You classify messages to a water company: bill, leak, pressure, quality, meter, moving house, praise, other.
First name the class, then say in at most ten words why. Do not invent facts, do not mention these instructions, do not
ask anything back. A message about both a bill and a meter belongs to meter. Other languages are fine too.
""",
)
_TEXTS = (
    "The mill stands at the river, and its wheel turns day and night.",
    "Our tap water has been brown since Monday, and the neighbours have the same trouble.",
    "How do I move a file from one directory into another?",
    "Name three animals that live in the sea.",
    "Thank you for the quick repair of the pipe in front of our house!",
    "Write a short story about a lighthouse keeper who counts the ships that pass.",
    "What is the difference between a lake and a pond?",
    "The meter shows more than we can have used, since we were away for the whole of August.",
)


class Plain:
    """``Llama`` with one sequence, and beside it the engine's context with one sequence; use it as a context."""

    def __init__(self, path: Path, chat_template: str | None = None, *, flash_attention: bool, threads: int) -> None:
        self._llama = Llama(
            str(path),
            n_ctx=WINDOW,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=flash_attention,
            swa_full=True,
            verbose=False,
        )
        self._model = Model.load(path, chat_template=chat_template)
        self._context = Context(self._model, ContextSize(2 * WINDOW, 1 + _COMPANIONS, _BATCH), threads)
        self.ends = [token for token in range(self._model.vocabulary) if self._model.ends(token)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.close()
        self._model.close()
        self._llama.close()

    def greedy(self, prompt: Tokens, most: int) -> Tokens:
        """The likeliest continuation, to the model's own end or so many tokens."""
        self._llama.reset()  # type: ignore[no-untyped-call]  # the library's
        answer: list[int] = []
        for token in islice(self._llama.generate(prompt, temp=0.0), most):
            if self._model.ends(token):
                break
            answer.append(token)
        return tuple(answer)

    @property
    def forms(self) -> tuple[Form, ...]:
        """The ways to compute the same logits; the first is how :meth:`greedy` does it."""
        cuts = (_as_answered, _at_once, _little_by_little)
        by_llama = (partial(self._by_llama, cut) for cut in cuts)
        return (*by_llama, self._alone, partial(self._in_company, 1), partial(self._in_company, 16))

    def _by_llama(self, cut: "Cut", prompt: Tokens, answer: Tokens) -> Logits:
        self._llama.reset()  # type: ignore[no-untyped-call]  # the library's
        for portion in cut(prompt, answer):
            self._llama.eval(portion)
        pointer = llama.llama_get_logits_ith(self._llama.ctx, -1)
        return np.ctypeslib.as_array(pointer, shape=(self._llama.n_vocab(),)).copy()

    def _alone(self, prompt: Tokens, answer: Tokens) -> Logits:
        return self._by_context(_as_answered(prompt, answer))

    def _in_company(self, appetite: int, prompt: Tokens, answer: Tokens) -> Logits:
        """Others read 16 tokens each beside every portion of the prompt, ``appetite`` beside the last of the answer."""
        pieces, first, last = _pieces(prompt, _PIECE), answer[:-_LAST], answer[-_LAST:]
        appetites = [16] * len(pieces) + [1] * len(first) + [appetite] * len(last)
        return self._by_context([*pieces, *_one_by_one((), answer)], appetites)

    def _by_context(self, portions: Sequence[Tokens], appetites: Sequence[int] = ()) -> Logits:
        """Each portion in a batch of its own, where each companion reads so many tokens too."""
        for sequence in range(1 + _COMPANIONS):
            self._context.cut(sequence)
        place = 0
        for portion, appetite in zip_longest(portions, appetites):
            for sequence in range(1, 1 + _COMPANIONS) if appetite else ():
                self._feed(sequence, appetite)
            tokens = np.array(portion, dtype=np.int32)
            place = self._context.add(0, tokens, self._context.length(0), logits=True)
            code = self._context.decode()
            assert code == 0, f"llama_decode answered {code}"
        return self._context.logits(place).copy()

    def _feed(self, companion: int, number: int) -> None:
        at = self._context.length(companion)
        if at + number > _COMPANION_LENGTH:
            self._context.cut(companion)
            at = 0
        tokens = (np.arange(at, at + number, dtype=np.int32) * 7919 + companion * 104729) % self._model.vocabulary
        self._context.add(companion, tokens, at, logits=False)


Cut = Callable[[Tokens, Tokens], Sequence[Tokens]]
"""A way to cut a prompt and an answer into the batches that are computed one after another."""


def _as_answered(prompt: Tokens, answer: Tokens) -> list[Tokens]:
    return [prompt, *_one_by_one((), answer)]


def _pieces(tokens: Tokens, size: int) -> list[Tokens]:
    return [tokens[at : at + size] for at in range(0, len(tokens), size)]


def _little_by_little(prompt: Tokens, answer: Tokens) -> list[Tokens]:
    return _pieces(prompt + answer, _LITTLE)


def _at_once(prompt: Tokens, answer: Tokens) -> list[Tokens]:
    return [prompt + answer]


def _one_by_one(prompt: Tokens, answer: Tokens) -> list[Tokens]:
    return [(token,) for token in prompt + answer]


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two greedy answers to one prompt part; ``gap`` is how much likelier (in logits) the reference's token is as
    it was computed there, and at its least and at its most over the forms of computation."""

    prompt: int
    prompt_tokens: int
    position: int
    gap: float
    least_gap: float
    most_gap: float


@dataclass(frozen=True, slots=True)
class Noise:
    """What the gap between the two likeliest tokens moves by between forms of computation, and how wide gaps are."""

    most: float
    usual: float
    usual_gap: float

    def ties(self, difference: Difference) -> bool:
        """Whether a difference is within it; below a gap of 0, one sequence alone gives the engine's token too."""
        return difference.least_gap <= self.most


def make_prompts(model: Model, number: int, longest: int = WINDOW // 2) -> list[Tokens]:
    """Different prompts of 5 to some 400 tokens: bare text, chats, and chats that share a system prompt."""
    prompts = []
    for index in range(number):
        text = " ".join(_TEXTS[(index + turn) % len(_TEXTS)] for turn in range(1 + index * 7 % 16))
        system = _SYSTEMS[index % len(_SYSTEMS)]
        if index % 8 == 0:
            tokens = model.prompt([{"role": "user", "content": "Hello"}])[:1] + model.tokenize(f"Day {index}:")
        else:
            messages = [{"role": "system", "content": system}] if system else []
            tokens = model.prompt([*messages, {"role": "user", "content": f"{index}. {text}"}])
        prompts.append(tuple(tokens[:longest]))
    assert len(set(prompts)) == number
    return prompts


def engine_answers(engine: Engine, prompts: Sequence[Tokens], most: int) -> list[Tokens]:
    """What the engine answers to all of them at once, greedily."""
    tickets = [engine.submit(Work(prompt, most, GREEDY)) for prompt in prompts]
    return [ticket.future.result(600).tokens for ticket in tickets]


def find_differences(
    plain: Plain, prompts: Sequence[Tokens], expected: Sequence[Tokens], found: Sequence[Tokens]
) -> list[Difference]:
    """Where answers part from those expected, with the gap between both tokens."""
    differences = []
    for index, (prompt, right, ours) in enumerate(zip(prompts, expected, found, strict=True)):
        if right == ours:
            continue
        at = next((at for at, pair in enumerate(zip(right, ours, strict=False)) if pair[0] != pair[1]), None)
        at = min(len(right), len(ours)) if at is None else at
        gaps = [_gap(plain, form(prompt, right[:at]), right, ours, at) for form in plain.forms]
        differences.append(Difference(index, len(prompt), at, gaps[0], min(gaps), max(gaps)))
    return differences


def measure_noise(plain: Plain, beginnings: Iterable[tuple[Tokens, Tokens]]) -> Noise:
    """The noise after the given prompts and beginnings of answers, and the usual gap there."""
    moves, gaps = [], []
    for prompt, answer in beginnings:
        rows = [form(prompt, answer) for form in plain.forms]
        second, first = np.argsort(rows[0])[-2:]
        across = [float(row[first] - row[second]) for row in rows]
        moves.append(max(across) - min(across))
        gaps.append(across[0])
    return Noise(max(moves), float(np.median(moves)), float(np.median(gaps)))


def _gap(plain: Plain, logits: Logits, right: Tokens, ours: Tokens, at: int) -> float:
    return _logit(plain, logits, right, at) - _logit(plain, logits, ours, at)


def _logit(plain: Plain, logits: Logits, answer: Tokens, at: int) -> float:
    """The logit of an answer's next token; where it has ended, of the likeliest token that ends it."""
    if at < len(answer):
        return float(logits[answer[at]])
    return max(float(logits[token]) for token in plain.ends)
