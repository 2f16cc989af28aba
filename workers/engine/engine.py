"""The engine: one thread, one context, many generations at once.

Each step computes one token of every sequence that writes and, beside them, portions of the prompts of those that
read (:mod:`workers.engine.pace`). Orders wait, tenants in rotation, until the cache has room for all that they may
need; one whose beginning another is just computing waits for that, and shares it
(:mod:`workers.engine.cache`).
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING

import structlog

from models.errors import FailureCode
from workers.engine.cache import KVCache, Match, common_beginning
from workers.engine.context import ABORTED, Context, ContextSize
from workers.engine.ending import Endings
from workers.engine.errors import EngineError
from workers.engine.model import Model
from workers.engine.pace import Pace, share_out
from workers.engine.queueing import WaitingOrders
from workers.engine.sampling import Candidates, Sampler
from workers.engine.sequence import OnText, Running, Ticket, Waiting, Work
from workers.engine.speed import Speed
from workers.engine.watchdog import Watchdog, end_process

if TYPE_CHECKING:
    from workers.engine.gpu import GpuOptions

log = structlog.get_logger()
_WORTH_WAITING = 32
"""The tokens of a shared beginning for which an order waits until another has computed them."""

_JUST_BEGUN = 4
"""A sequence that has written so few tokens may be held up by the prompts that came with it."""

_KEPT_PER_SEQUENCE = 64
"""Of finished sequences so many cells are kept, times the parallel sequences."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The size of an engine: ``parallel`` sequences of at most ``context_window`` tokens each, ``cells`` tokens of
    all of them together, ``batch`` tokens per step; a step that takes longer than ``step_timeout_s`` is broken off."""

    parallel: int
    cells: int
    context_window: int
    threads: int
    batch: int = 512
    step_timeout_s: float = 60.0
    gpu: "GpuOptions | None" = None


@dataclass(slots=True)
class EngineStats:
    """What an engine has done and holds, in tokens unless named otherwise."""

    steps: int = 0
    prompt_tokens: int = 0
    shared_tokens: int = 0
    output_tokens: int = 0
    interrupted_steps: int = 0
    failed_steps: int = 0
    cells_used: int = 0
    sequences_kept: int = 0
    sequences_running: int = 0
    orders_waiting: int = 0


@dataclass(frozen=True, slots=True)
class _Part:
    """A sequence's tokens in one step."""

    running: Running
    count: int


class Engine:
    """Serves many generations on one model; any thread may submit. It owns the model."""

    def __init__(self, model: Model, options: EngineOptions, give_up: Callable[[], None] = end_process) -> None:
        """Raises ModelError when there is no memory for the cache."""
        self.model = model
        self.options = options
        self.stats = EngineStats()
        slots = options.parallel + max(4, options.parallel // 2)
        size = ContextSize(options.cells, slots, max(options.batch, options.parallel))
        self._context = Context(model, size, options.threads, options.gpu)
        self._cache = KVCache(
            self._context, cells=options.cells, slots=slots, retained_cells=options.parallel * _KEPT_PER_SEQUENCE
        )
        self._pace = Pace(size.batch)
        self._speed = Speed()
        self._candidates = Candidates(model.vocabulary)
        self._endings = Endings(lambda: model.tokens.pieces, model.piece)
        self._waiting: WaitingOrders[Waiting] = WaitingOrders(lambda order: order.work.tenant)
        self._running: list[Running] = []
        self._inbox: deque[Waiting | Future[None]] = deque()
        self._news = threading.Event()
        self._closing = False
        self._submitting = threading.Lock()
        self._places: list[int] = []
        self._give_up = give_up
        self._watchdog = Watchdog(options.step_timeout_s, self._context.flag.raise_it, give_up)
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)
        self._thread.start()

    @property
    def jobs(self) -> int:
        """Generations that wait or run."""
        return len(self._inbox) + len(self._waiting) + len(self._running)

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens generated per second of work, lately; None before any."""
        return self._speed.tokens_per_s

    def submit(self, work: Work, on_text: OnText | None = None) -> Ticket:
        """Order a generation; ``on_text`` is called on the engine's thread with each piece of text.

        The answer ends where the context window does. Raises EngineError when the work cannot be done at all.
        """
        checked = self._check(work)
        ending = None if work.grammar is None else self._endings.follow(work.grammar)
        if ending is not None:
            _check_shortest(ending.fewest, work, checked.max_tokens)
        sampler = Sampler(self.model, work.sampling, work.grammar, ending)
        order = Waiting(Ticket(on_text), checked, sampler)
        with self._submitting:
            if self._closing:
                order.sampler.close()
                raise EngineError(FailureCode.OVERLOADED, "the model is being unloaded")
            self._inbox.append(order)
        self._news.set()
        return order.ticket

    def forget(self) -> None:
        """Keep nothing of finished sequences; waits until it is done."""
        done: Future[None] = Future()
        with self._submitting:
            if self._closing:
                return
            self._inbox.append(done)
        self._news.set()
        done.result()

    def close(self) -> None:
        """End what is unfinished with an error and free everything; waits for the step under way."""
        with self._submitting:
            if self._closing:
                return
            self._closing = True
        self._news.set()
        self._thread.join()
        self._watchdog.close()
        self._context.close()
        self.model.close()

    def _check(self, work: Work) -> Work:
        window = min(self.options.context_window, self.options.cells)
        length = len(work.prompt)
        if length >= window:
            message = f"the prompt has {length} tokens, the context window {window}"
            raise EngineError(FailureCode.CONTEXT_LENGTH_EXCEEDED, message)
        # One token out of range would fail the step of everyone.
        if not length or min(work.prompt) < 0 or max(work.prompt) >= self.model.vocabulary:
            raise EngineError(FailureCode.PROVIDER_REJECTED, "the prompt is empty or has tokens that the model lacks")
        most = max(1, min(work.max_tokens, window - length))
        return replace(work, max_tokens=most)

    def _live(self) -> None:
        try:
            while not self._closing:
                self._take_in()
                self._work()
                self._count()
            self._fail_running(EngineError(FailureCode.OVERLOADED, "the model was unloaded"))
            self._fail_waiting(EngineError(FailureCode.OVERLOADED, "the model was unloaded"))
        except Exception:
            # Nobody would ever answer those who wait.
            log.critical("engine.died", exc_info=True)
            self._give_up()

    def _work(self) -> None:
        """One step, with what comes before it; an error in it is the error of those who run."""
        try:
            self._drop_cancelled()
            self._admit()
            parts = self._plan()
            if parts:
                self._step_watched(parts)
        except Exception as error:
            log.exception("engine.crashed")
            failure = EngineError(FailureCode.INTERNAL, f"the engine failed: {error}")
            if not self._running:
                self._fail_waiting(failure)
            self._fail_running(failure)
            self._cache.forget()

    def _take_in(self) -> None:
        """Take the new orders; when there is nothing to do, wait for one."""
        if not self._waiting and not self._running:
            self._news.wait()
        self._news.clear()
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, Waiting):
                self._waiting.put(item)
            else:
                self._cache.forget()
                self._count()
                item.set_result(None)

    def _drop_cancelled(self) -> None:
        for running in [running for running in self._running if running.ticket.cancelled]:
            self._end(running)
            running.ticket.future.set_exception(CancelledError())
        if any(order.ticket.cancelled for order in self._waiting):
            for order in [order for order in self._waiting if order.ticket.cancelled]:
                self._waiting.remove(order)
                self._refuse(order, CancelledError())

    def _admit(self) -> None:
        """Give places to those that wait: tenants rotate, and of one tenant the first that came is first. Those whose
        beginning is being computed wait for it, and let others go before them."""
        while len(self._running) < self.options.parallel:
            ready = next(((order, match) for order in self._waiting for match in self._beginnings(order)), None)
            if ready is None:
                return
            order, match = ready
            if self._must_repeat(order):
                self._cache.forget()
                match = None
            slot = self._cache.admit(order.need, match)
            if slot is None:
                return
            self._waiting.serve(order)
            self._running.append(Running(order, slot, match.tokens if match else 0))
            self.stats.shared_tokens += match.tokens if match else 0

    def _must_repeat(self, order: Waiting) -> bool:
        """Whether an order's answer must be the same each time: one with a seed that has the engine to itself. What is
        kept of others would change where and in which portions its prompt is computed, and so the last bits."""
        return order.work.sampling.seed is not None and not self._running

    def _beginnings(self, order: Waiting) -> Iterator[Match | None]:
        """The computed beginning that an order starts from, perhaps None; nothing while it waits for a better one."""
        if not order.must_wait():
            match = self._find_beginning(order)
            if not order.must_wait():
                yield match

    def _find_beginning(self, order: Waiting) -> Match | None:
        """The longest computed beginning of an order's prompt; notes when a better one is being computed."""
        best = self._cache.match(order.prompt)
        order.awaited = None
        longest = (best.tokens if best else 0) + _WORTH_WAITING
        for running in self._running:
            common = common_beginning(order.prompt[:-1], running.tokens)
            there = min(common, running.computed)
            if running.slot is not None and there > (best.tokens if best else 0):
                best = Match(running.slot, there)
            if running.reads and common >= max(longest, running.computed + 1):
                order.awaited, longest = (running, common), common
        return best

    def _plan(self) -> list[_Part]:
        """The parts of the next step: a token of everyone who writes, and portions of the prompts."""
        writing = [running for running in self._running if not running.reads]
        reading = [running for running in self._running if running.reads]
        parts = [_Part(running, 1) for running in writing]
        if reading:
            under_way = any(running.ticket.output_tokens > _JUST_BEGUN for running in writing)
            room = self._pace.prompt_tokens(len(writing), len(reading), under_way=under_way)
            portions = share_out(room, [running.prompt_length - running.computed for running in reading])
            parts += [_Part(running, count) for running, count in zip(reading, portions, strict=True) if count]
        return parts

    def _step_watched(self, parts: Sequence[_Part]) -> None:
        """A step that the watchdog looks at from its beginning to its end, the choice of the next tokens included."""
        self._watchdog.begin()
        try:
            self._step(parts)
        finally:
            self._watchdog.end()

    def _step(self, parts: Sequence[_Part]) -> None:
        began_at = monotonic()
        self._context.flag.lower()
        code = self._compute(parts)
        if code == 0:
            took_s = monotonic() - began_at
            writing = sum(not part.running.reads for part in parts)
            prompt_tokens = sum(part.count for part in parts) - writing
            self._pace.learn(writing, prompt_tokens, took_s)
            self.stats.prompt_tokens += prompt_tokens
            written = self._take_results(parts)
            self._speed.learn(written, monotonic() - began_at)
        elif len(parts) == 1 or code == ABORTED:
            self._fail(parts, code)
        else:
            # Somebody's part is to blame: each alone, so that the others go on.
            self.stats.failed_steps += 1
            log.error("engine.step_failed", code=code, sequences=len(parts))
            for part in parts:
                self._step_watched([part])

    def _compute(self, parts: Sequence[_Part]) -> int:
        self._places = []
        for running, count in ((part.running, part.count) for part in parts):
            tokens = running.next_tokens(count)
            wanted = running.computed + count == running.known
            self._places.append(self._context.add(_slot(running), tokens, running.computed, logits=wanted))
        code = self._context.decode()
        self.stats.steps += 1
        if code != 0:
            for part in parts:  # what a failed step has left behind
                self._context.cut(_slot(part.running), part.running.computed)
        return code

    def _take_results(self, parts: Sequence[_Part]) -> int:
        """Choose the next token of everyone whose prompt is computed; gives how many were written."""
        before = self.stats.output_tokens
        for part, place in zip(parts, self._places, strict=True):
            running = part.running
            self._cache.grow(_slot(running), part.count)
            if running.advance(part.count):
                try:
                    self._write(running, place)
                except EngineError as error:
                    log.warning("engine.sequence_refused", problem=str(error))
                    self._end(running, keep=False)
                    running.ticket.future.set_exception(error)
                except Exception as error:
                    log.exception("engine.sequence_failed")
                    self._end(running, keep=False)
                    running.ticket.future.set_exception(EngineError(FailureCode.INTERNAL, f"{error}"))
        return self.stats.output_tokens - before

    def _write(self, running: Running, place: int) -> None:
        token = running.sampler.choose(self._context.logits(place), self._candidates, running.left)
        if token is None or (self.model.ends(token) and not running.work.ignore_eos):
            self._finish(running, "stop")
            return
        running.sampler.accept(token)
        running.write(token, self.model.piece(token))
        self.stats.output_tokens += 1
        if running.finish_reason is not None:
            self._finish(running, running.finish_reason)

    def _finish(self, running: Running, reason: str) -> None:
        completion = running.complete(reason)
        self._end(running)
        running.ticket.future.set_result(completion)

    def _end(self, running: Running, *, keep: bool = True) -> None:
        """Take a sequence out; what it computed is kept for others."""
        slot, running.slot = _slot(running), None
        self._running.remove(running)
        running.sampler.close()
        if keep and running.computed:
            self._cache.retire(slot, running.computed_tokens)
        else:
            self._cache.drop(slot)

    def _fail(self, parts: Sequence[_Part], code: int) -> None:
        if code == ABORTED:
            self.stats.interrupted_steps += 1
            error = EngineError(FailureCode.TIMEOUT, f"a step took longer than {self.options.step_timeout_s:g} s")
        else:
            error = EngineError(FailureCode.INTERNAL, f"llama.cpp could not compute it (code {code})")
        for part in parts:
            self._end(part.running, keep=False)
            part.running.ticket.future.set_exception(error)

    def _fail_running(self, error: EngineError) -> None:
        for running in list(self._running):
            self._end(running, keep=False)
            running.ticket.future.set_exception(error)

    def _fail_waiting(self, error: EngineError) -> None:
        orders = [*self._waiting, *self._inbox]
        self._waiting.clear()
        self._inbox.clear()
        for order in orders:
            if isinstance(order, Waiting):
                self._refuse(order, error)
            else:
                order.set_result(None)

    def _refuse(self, order: Waiting, error: BaseException) -> None:
        order.sampler.close()
        order.ticket.future.set_exception(error)

    def _count(self) -> None:
        self.stats.cells_used = self._cache.cells_used
        self.stats.sequences_kept = self._cache.retained
        self.stats.sequences_running = len(self._running)
        self.stats.orders_waiting = len(self._waiting)


def _check_shortest(fewest: int, work: Work, most: int) -> None:
    """Raises EngineError when no answer in the form fits into ``most`` tokens."""
    if fewest <= most:
        return
    if most < work.max_tokens:
        message = f"the shortest answer in its form takes {fewest} tokens; the context window leaves {most}"
        raise EngineError(FailureCode.CONTEXT_LENGTH_EXCEEDED, message)
    message = f"max_tokens: the shortest answer in its form takes {fewest} tokens, got {most}"
    raise EngineError(FailureCode.PROVIDER_REJECTED, message)


def _slot(running: Running) -> int:
    if running.slot is None:
        raise RuntimeError("the sequence has ended")
    return running.slot
