"""Choosing the next token of one sequence, by llama.cpp's samplers."""

import ctypes
import random
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from time import thread_time
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
from llama_cpp import llama_cpp as llama

from models.errors import FailureCode
from workers.engine import native
from workers.engine.ending import Ending
from workers.engine.errors import EngineError
from workers.engine.grammar_states import TooManyPlacesError
from workers.engine.model import Model

_PENALTY_WINDOW = 64
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
_RANDOM_SEED = 2**32 - 1
"""What llama.cpp takes for the wish for a seed of its own choice."""

SLOW_CALL_S = 0.25
MOST_SLOW_CALLS = 8
MOST_CALL_S = 1.0
"""A sequence fails whose grammar takes longer than this in one call, or is slow in more than so many. A call over the
largest vocabularies takes some 60 ms with an honest grammar."""

_OTHER_CHOICES = 4
"""Near the end of an answer's tokens, so many other tokens are tried before the shortest way to the end is taken."""

log = structlog.get_logger()

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens; temperature 0 takes the likeliest, a ``top_k`` of 0 all of them."""

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    seed: int | None = None
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    @property
    def penalizes(self) -> bool:
        return self.repeat_penalty != 1.0 or bool(self.frequency_penalty or self.presence_penalty)


USUAL = Sampling()
GREEDY = Sampling(temperature=0.0)


class Candidates:
    """Every token of the vocabulary, or some of them, with its logit, as llama.cpp's samplers take them; one per
    engine."""

    def __init__(self, vocabulary: int, tokens: npt.NDArray[np.int32] | None = None) -> None:
        self._ids = np.arange(vocabulary, dtype=np.int32) if tokens is None else tokens
        self._all = np.zeros(len(self._ids), dtype=_CANDIDATE)
        self._one = np.zeros(1, dtype=_CANDIDATE)

    def fill(self, logits: Logits) -> llama.llama_token_data_array:
        """All of them, as a step computed them."""
        self._all["id"], self._all["logit"] = self._ids, logits
        return _as_native(self._all)

    def only(self, token: int) -> llama.llama_token_data_array:
        """One of them."""
        self._one[0] = (token, 1.0, 0.0)
        return _as_native(self._one)

    @property
    def only_is_allowed(self) -> bool:
        """Whether the one survived the sampler that was applied to it."""
        return bool(np.isfinite(self._one["logit"][0]))

    def forbid(self, tokens: Sequence[int]) -> None:
        """Take some out of all, which must be the whole vocabulary."""
        self._all["logit"][list(tokens)] = -np.inf

    @property
    def likeliest(self) -> int:
        """The likeliest of all, as a sampler that only forbids has left them."""
        return int(self._all["logit"].argmax())

    @property
    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which of all survived."""
        survived: npt.NDArray[np.bool_] = np.isfinite(self._all["logit"])
        return survived


class Patience:
    """How much of a processor's time a sequence's grammar may take: a call that takes long holds up every sequence of
    the engine, and cannot be broken off."""

    def __init__(self) -> None:
        self._slow_calls = 0

    def spend(self, seconds: float) -> None:
        """Count a call. Raises EngineError when there is no more patience."""
        self._slow_calls += seconds > SLOW_CALL_S
        if seconds > MOST_CALL_S or self._slow_calls > MOST_SLOW_CALLS:
            message = "sampling by the grammar of its JSON Schema takes too long; a simpler schema is needed"
            raise EngineError(FailureCode.PROVIDER_REJECTED, message)


class Sampler:
    """The samplers of one sequence; :meth:`close` frees them.

    ``ending`` keeps an answer by a grammar within its tokens. Raises EngineError when the grammar is none.
    """

    def __init__(self, model: Model, sampling: Sampling, grammar: str | None, ending: Ending | None = None) -> None:
        self._chain = None if sampling == GREEDY else _chain(model, sampling)
        self._grammar: Any = None  # Any: C's pointer to a sampler
        self._penalizes = sampling.penalizes
        self._patience = Patience()
        self._ends = model.ends
        self._ending = ending
        if grammar is not None:
            self._grammar = llama.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root") or None
            if self._grammar is None:
                self.close()
                raise EngineError(FailureCode.PROVIDER_REJECTED, "the grammar is not valid for llama.cpp")

    @property
    def may_end(self) -> bool:
        """Whether what was accepted is known to be a whole answer by the grammar."""
        return self._ending is not None and self._ending.may_end

    @property
    def complete(self) -> bool:
        """Whether what was accepted is known to be a whole answer that cannot go on."""
        return self._ending is not None and self._ending.complete

    def choose(self, logits: Logits, candidates: Candidates, left: int) -> int | None:
        """The next token, when ``left`` more may be written; None when the grammar leaves none.

        The grammar is asked about the chosen token first, and about the whole vocabulary only if it refuses.
        Raises EngineError when the grammar takes too long.
        """
        token: int | None = self._choose(logits, candidates)
        if self._grammar is None or token is None:
            return token
        if not self._permits(token, candidates):
            token = self._choose_permitted(logits, candidates, ())
        return token if self._fits(token, left) else self._choose_fitting(token, logits, candidates, left)

    def accept(self, token: int) -> None:
        """Note the token that follows. Raises EngineError when the grammar takes too long."""
        if self._grammar is not None:
            began_at = thread_time()
            native.grammar_accept(self._grammar, token)
            self._patience.spend(thread_time() - began_at)
        if self._ending is not None:
            self._ending.advance(token)
        if self._penalizes:
            native.sampler_accept(self._chain, token)

    def _fits(self, token: int | None, left: int) -> bool:
        """Whether the answer can end within its tokens after a token that the grammar permits."""
        if self._ending is None or token is None or self._ends(token):
            return True
        try:
            return self._ending.fits(token, left)
        except TooManyPlacesError:
            self._ending = None
            return True

    def _choose_fitting(self, token: int | None, logits: Logits, candidates: Candidates, left: int) -> int | None:
        """Another token than one that does not fit: the next choices, or that of the shortest way to the end."""
        ending, refused = self._ending, list[int]()
        while ending is not None and token is not None and len(refused) < _OTHER_CHOICES and ending.fewest < left:
            refused.append(token)
            token = self._choose_permitted(logits, candidates, refused)
            if self._fits(token, left) and token is not None:
                return token
        if ending is None or self._ending is None:
            return token
        shortest = ending.next_token()
        if self._permits(shortest, candidates):
            return shortest
        log.error("grammar.followed_wrongly", token=shortest)
        self._ending = None
        return self._choose_permitted(logits, candidates, ())

    def _permits(self, token: int, candidates: Candidates) -> bool:
        self._apply_grammar(candidates.only(token))
        return candidates.only_is_allowed

    def _choose_permitted(self, logits: Logits, candidates: Candidates, refused: Sequence[int]) -> int | None:
        """One of all tokens that the grammar permits, but for some."""
        array = candidates.fill(logits)
        self._apply_grammar(array)
        if refused:
            candidates.forbid(refused)
        return self._pick(array, candidates) if candidates.allowed.any() else None

    def _apply_grammar(self, array: llama.llama_token_data_array) -> None:
        began_at = thread_time()
        native.grammar_apply(self._grammar, ctypes.byref(array))
        self._patience.spend(thread_time() - began_at)

    def close(self) -> None:
        """Free the samplers."""
        for sampler in (self._chain, self._grammar):
            if sampler is not None:
                native.sampler_free(sampler)
        self._chain = self._grammar = None

    def _choose(self, logits: Logits, candidates: Candidates) -> int:
        if self._chain is None:
            return int(logits.argmax())
        return self._pick(candidates.fill(logits), candidates)

    def _pick(self, array: llama.llama_token_data_array, candidates: Candidates) -> int:
        if self._chain is None:
            return candidates.likeliest
        native.sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)


def _chain(model: Model, sampling: Sampling) -> Any:  # Any: C's pointer to a sampler
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    for sampler in _samplers(model, sampling):
        llama.llama_sampler_chain_add(chain, sampler)
    return chain


def fold_seed(seed: int) -> int:
    """A seed as llama.cpp takes it, in 32 bits: those that it takes as they are stay, others are hashed."""
    if 0 <= seed < _RANDOM_SEED:
        return seed
    digest = sha256(str(seed).encode()).digest()
    return int.from_bytes(digest[:4], "big") % _RANDOM_SEED


def _samplers(model: Model, sampling: Sampling) -> list[Any]:
    """In the order of llama.cpp's own tools."""
    made: list[Any] = []
    if sampling.penalizes:
        penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        made.append(llama.llama_sampler_init_penalties(model.vocabulary, _PENALTY_WINDOW, *penalties))
    if sampling.temperature <= 0:
        return [*made, llama.llama_sampler_init_greedy()]
    seed = random.getrandbits(32) if sampling.seed is None else fold_seed(sampling.seed)
    if sampling.top_k > 0:
        made.append(llama.llama_sampler_init_top_k(sampling.top_k))
    if sampling.top_p < 1:
        made.append(llama.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        made.append(llama.llama_sampler_init_min_p(sampling.min_p, 1))
    return [*made, llama.llama_sampler_init_temp(sampling.temperature), llama.llama_sampler_init_dist(seed)]


def _as_native(candidates: npt.NDArray[np.void]) -> llama.llama_token_data_array:
    data = ctypes.cast(candidates.ctypes.data, llama.llama_token_data_p)
    return llama.llama_token_data_array(data=data, size=len(candidates), selected=-1, sorted=False)
