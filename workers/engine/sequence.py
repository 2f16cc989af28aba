"""One generation: what was ordered, and how far it is."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from time import monotonic

import numpy as np

from workers.engine.cache import Tokens
from workers.engine.sampling import USUAL, Sampler, Sampling
from workers.engine.text import TextStream

OnText = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Work:
    """What to generate. ``grammar`` is GBNF; ``ignore_eos`` goes on past the model's own end, for measurements.

    Where work of several tenants waits, tenants rotate.
    """

    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling = USUAL
    stop: tuple[str, ...] = ()
    grammar: str | None = None
    ignore_eos: bool = False
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """What was generated; ``finish_reason`` is ``stop`` or ``length``."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str


class Ticket:
    """A generation in the engine; its counters are the engine's to write and anyone's to read.

    ``future`` gives the Completion or an EngineError; of a cancelled one, CancelledError.
    """

    def __init__(self, on_text: OnText | None = None) -> None:
        self.future: Future[Completion] = Future()
        self.future.set_running_or_notify_cancel()  # so that only the engine ends it
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0
        self.first_token_at: float | None = None
        self.cancelled = False
        self.on_text = on_text

    def cancel(self) -> None:
        """End it before the next step."""
        self.cancelled = True


class Waiting:
    """An order that has no place in the cache yet; ``awaited`` is a running sequence that computes its beginning."""

    def __init__(self, ticket: Ticket, work: Work, sampler: Sampler) -> None:
        self.ticket = ticket
        self.work = work
        self.sampler = sampler
        self.prompt: Tokens = np.array(work.prompt, dtype=np.int32)
        self.awaited: tuple[Running, int] | None = None

    @property
    def need(self) -> int:
        """The most tokens that it may come to."""
        return len(self.prompt) + self.work.max_tokens

    def must_wait(self) -> bool:
        """Whether the beginning that it awaits is still being computed."""
        if self.awaited is None:
            return False
        running, tokens = self.awaited
        return running.slot is not None and running.computed < tokens


class Running:
    """A sequence in the cache: reading while its prompt is not computed, writing after."""

    def __init__(self, order: Waiting, slot: int, shared: int) -> None:
        self.ticket = order.ticket
        self.work = order.work
        self.sampler = order.sampler
        self.slot: int | None = slot
        self.computed = shared
        self.known = self.prompt_length = len(order.prompt)
        self._tokens = np.zeros(order.need, dtype=np.int32)
        self._tokens[: self.known] = order.prompt
        self._text = TextStream(order.work.stop)
        self._pieces: list[str] = []
        self.ticket.prompt_tokens, self.ticket.cached_tokens = self.prompt_length, shared

    @property
    def reads(self) -> bool:
        """Whether a part of its prompt is still to be computed."""
        return self.computed < self.prompt_length

    @property
    def tokens(self) -> Tokens:
        """The prompt and what was generated."""
        return self._tokens[: self.known]

    @property
    def computed_tokens(self) -> Tokens:
        return self._tokens[: self.computed]

    def next_tokens(self, count: int) -> Tokens:
        """The next tokens to compute."""
        return self._tokens[self.computed : self.computed + count]

    def advance(self, count: int) -> bool:
        """A step has computed tokens; whether the next token can be chosen now."""
        self.computed += count
        return self.computed == self.known

    def write(self, token: int, piece: bytes) -> None:
        """Add a generated token."""
        if self.ticket.first_token_at is None:
            self.ticket.first_token_at = monotonic()
        self._tokens[self.known] = token
        self.known += 1
        self.ticket.output_tokens += 1
        self.show(self._text.push(piece))

    @property
    def left(self) -> int:
        """How many more tokens it may write."""
        return self.work.max_tokens - self.ticket.output_tokens

    @property
    def finish_reason(self) -> str | None:
        """Why it is finished, if it is: an answer that is whole when its tokens are spent was not cut off."""
        if self._text.stopped or self.sampler.complete:
            return "stop"
        if self.left > 0:
            return None
        return "stop" if self.sampler.may_end else "length"

    def show(self, text: str) -> None:
        """Give out text that has become certain."""
        if text:
            self._pieces.append(text)
            if self.ticket.on_text is not None:
                self.ticket.on_text(text)

    def complete(self, finish_reason: str) -> Completion:
        """The whole answer."""
        self.show(self._text.finish())
        if self._text.stopped:
            finish_reason = "stop"
        generated = self._tokens[self.prompt_length : self.known]
        return Completion("".join(self._pieces), tuple(generated.tolist()), finish_reason)
