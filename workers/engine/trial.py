"""A process that builds grammars and tries them before the engine samples by them.

    python -m workers.engine.trial

A schema may be written to hurt: its grammar may crash llama.cpp, have no end, or take seconds a token, and a native
call cannot be ended from outside. So this process does it first, with little memory, a small stack and a limit of
processor time (:mod:`workers.children`). It reads ``{"schema", "model", "level"}`` and answers ``{"grammar", "exact",
"level"}``: the tightest grammar from that level on that llama.cpp takes and that is quick enough. It needs the model's
vocabulary only.
"""

import ctypes
import json
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from random import Random
from time import thread_time
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as llama

from workers.child import serve
from workers.engine.grammar import grammars_of
from workers.engine.sampling import Candidates
from workers.engine.schema_grammar import Grammar
from workers.engine.vocabulary import Vocabulary, open_vocabulary

_MEMORY_BYTES = 1 << 30
"""What a grammar may take, beyond the libraries and the vocabulary."""

_STACK_BYTES = 1 << 20
"""Grammars that need more of the stack are refused by a crash of this process: the engine's threads have 8 MB."""

_NICENESS = 5
"""Sampling goes before trying."""

_VOCABULARIES = 4
_SAMPLE = 6144
"""Of larger vocabularies so many tokens are tried; the time of a step is told from theirs."""

_LEAST_BOUND_S = 0.04
_BOUND_FACTOR = 4.0
"""A step over the whole vocabulary may cost this many times one inside a string without a schema."""

_PARSE_BOUND_S = 0.5
_STEPS = 24
_STRING = 'root ::= "\\"" [^"\\\\\\x00-\\x1f]* "\\""'


class Trial:
    """Tries grammars on one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        size = min(vocabulary.size, _SAMPLE)
        dice = np.random.default_rng(0)
        some = dice.choice(vocabulary.size, size, replace=False)
        self._tokens = np.union1d(some, _single_characters(vocabulary)).astype(np.int32)
        self._quotes = np.array([b'"' in vocabulary.piece(int(token)) for token in self._tokens])
        self._ends = np.array([vocabulary.ends(int(token)) for token in self._tokens])
        self._scale = vocabulary.size / len(self._tokens)
        self._candidates = Candidates(len(self._tokens), self._tokens)
        usual = self._walk(_STRING, "root", 1, bound_s=float("inf"))
        self._bound_s = max(_LEAST_BOUND_S, _BOUND_FACTOR * (usual or 0.0))

    def passes(self, grammar: Grammar) -> bool:
        """Whether llama.cpp takes a grammar, and samples by it quickly enough."""
        for root in ("root", *grammar.probes):
            for seed in range(3 if root == "root" else 2):
                if self._walk(grammar.text, root, seed, self._bound_s) is None:
                    return False
        return True

    def _walk(self, text: str, root: str, seed: int, bound_s: float) -> float | None:
        """Sample at random for some steps; the median cost of one, or None when the grammar is not to be used."""
        began_at = thread_time()
        sampler = llama.llama_sampler_init_grammar(self._vocabulary.handle, text.encode(), root.encode())
        if not sampler:
            return None
        if thread_time() - began_at > _PARSE_BOUND_S:
            llama.llama_sampler_free(sampler)
            return None
        dice, costs = Random(seed), []
        try:
            for _ in range(_STEPS):
                cost_s, token = self._step(sampler, dice, bound_s)
                if cost_s > bound_s:
                    return None
                costs.append(cost_s)
                if token is None:
                    break
                began_at = thread_time()
                llama.llama_sampler_accept(sampler, token)
                if thread_time() - began_at > bound_s:
                    return None
        finally:
            llama.llama_sampler_free(sampler)
        return sorted(costs)[len(costs) // 2]

    def _step(self, sampler: Any, dice: Random, bound_s: float) -> tuple[float, int | None]:  # Any: a C pointer
        """What the next token costs, and one of those that may follow; None at the end."""
        cost_s = self._apply(sampler)
        if cost_s > bound_s:
            cost_s = min(cost_s, self._apply(sampler))  # once more: the machine may have been busy
        allowed = self._candidates.allowed & ~self._ends
        closing = allowed & self._quotes
        chosen = np.flatnonzero(closing if closing.any() and dice.random() < 0.4 else allowed)
        return cost_s, int(self._tokens[dice.choice(chosen)]) if len(chosen) else None

    def _apply(self, sampler: Any) -> float:  # Any: a C pointer
        array = self._candidates.fill(np.zeros(len(self._tokens), dtype=np.float32))
        began_at = thread_time()
        llama.llama_sampler_apply(sampler, ctypes.byref(array))
        return (thread_time() - began_at) * self._scale


class Trials:
    """Tries schemas on the vocabularies of some models."""

    def __init__(self) -> None:
        self._trials: OrderedDict[str, Trial] = OrderedDict()

    def answer(self, question: bytes) -> bytes:
        """The tightest grammar that can be used."""
        asked = json.loads(question)
        trial = self._trial_of(asked["model"])
        for level, grammar in grammars_of(asked["schema"], asked["level"]):
            if trial.passes(grammar):
                return json.dumps({"grammar": grammar.text, "exact": grammar.exact, "level": level}).encode()
        return json.dumps({"grammar": None, "exact": False, "level": 0}).encode()

    def _trial_of(self, model: str) -> Trial:
        trial = self._trials.pop(model, None)
        if trial is None:
            trial = Trial(open_vocabulary(Path(model)))
            while len(self._trials) >= _VOCABULARIES:
                self._trials.popitem(last=False)
        self._trials[model] = trial
        return trial


def _single_characters(vocabulary: Vocabulary) -> list[int]:
    """The tokens of single characters: with these every grammar has a next token."""
    texts = [*map(chr, range(32, 127)), "\n", '":', '",', '"}']
    return [token for text in texts for token in vocabulary.tokenize(text)]


def _on_a_small_stack(answer: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """The same function, run on a thread that has little stack."""

    def run(question: bytes) -> bytes:
        answers: list[bytes] = []
        thread = threading.Thread(target=lambda: answers.append(answer(question)))
        thread.start()
        thread.join()
        return answers[0]

    return run


def main() -> None:
    """Serve until standard input ends."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the library looks for GPUs when it is first used, and reserves memory
    sizes = Path("/proc/self/statm")
    if sizes.exists():
        used = int(sizes.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(_NICENESS)
    threading.stack_size(_STACK_BYTES)
    serve(_on_a_small_stack(Trials().answer))


if __name__ == "__main__":
    main()
