"""What a grammar lets through, by llama.cpp's own sampler, and texts derived from grammars at random."""

import ctypes
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as llama

from tests.workers.engine.local_models import smollm_path
from workers.engine.gbnf import Chars, Choice, Concat, Expression, Ref, Repeat, Text
from workers.engine.sampling import Candidates
from workers.engine.schema_grammar import USUAL, Limits, _Conversion
from workers.engine.vocabulary import Vocabulary, open_vocabulary


@lru_cache(maxsize=1)
def vocabulary() -> Vocabulary:
    """The small model's vocabulary."""
    return open_vocabulary(smollm_path())


def takes(grammar: str, text: str) -> bool:
    """Whether a grammar lets exactly this text through, as the engine asks it: token by token, and then the end."""
    words = vocabulary()
    sampler = llama.llama_sampler_init_grammar(words.handle, grammar.encode(), b"root")
    assert sampler, "the grammar is not valid for llama.cpp"
    candidates = Candidates(1)
    try:
        for token in words.tokenize(text):
            if not _allows(sampler, candidates, token):
                return False
            llama.llama_sampler_accept(sampler, token)
        return _allows(sampler, candidates, llama.llama_vocab_eos(words.handle))
    finally:
        llama.llama_sampler_free(sampler)


def _allows(sampler: Any, candidates: Candidates, token: int) -> bool:  # Any: a C pointer
    array = candidates.only(token)
    llama.llama_sampler_apply(sampler, ctypes.byref(array))
    return candidates.only_is_allowed


class Derivations:
    """Texts of a schema's grammar, derived at random from its rules."""

    def __init__(self, schema: Any, limits: Limits = USUAL) -> None:  # Any: a JSON Schema
        conversion = _Conversion(schema, limits)
        self.grammar = conversion.convert()
        self._rules = conversion._rules.rules
        self._root = self.grammar.text.split("\n", 1)[0].removeprefix("root ::= ")

    def derive(self, seed: int) -> str | None:
        """A text; None when it did not come to an end."""
        self._dice, self._left = Random(seed), 30_000
        try:
            return self._text(Ref(self._root))
        except (OverflowError, RecursionError):
            return None

    def _text(self, expression: Expression) -> str:
        self._left -= 1
        if self._left < 0:
            raise OverflowError
        match expression:
            case Text(value):
                return value
            case Chars(ranges):
                low, high = self._dice.choice(ranges)
                return chr(self._dice.choice((low, high, self._dice.randint(low, high))))
            case Ref(name):
                return self._text(self._rules[name])
            case Concat(items):
                return "".join(map(self._text, items))
            case Choice(options):
                return self._text(self._dice.choice(options))
            case Repeat(item, least, most):
                more = self._dice.choice((0, 0, 1, 2, 7))
                times = least + (more if most is None else min(more, most - least))
                if most is not None and self._dice.random() < 0.1:
                    times = most
                return "".join(self._text(item) for _ in range(min(times, 600)))
        raise AssertionError(expression)


def allowed_tokens(grammar: str) -> int:
    """How many tokens of the vocabulary a grammar lets begin with."""
    words = vocabulary()
    sampler = llama.llama_sampler_init_grammar(words.handle, grammar.encode(), b"root")
    assert sampler, "the grammar is not valid for llama.cpp"
    candidates = Candidates(words.size)
    array = candidates.fill(np.zeros(words.size, dtype=np.float32))
    llama.llama_sampler_apply(sampler, ctypes.byref(array))
    llama.llama_sampler_free(sampler)
    return int(candidates.allowed.sum())
