"""What goes wrong inside the engine hits the one it concerns, and nothing hangs."""

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from time import monotonic

import numpy as np
import pytest

from models.errors import FailureCode
from tests.workers.engine.test_engine import ANSWER_S, ask, open_model, refusal, result
from workers.engine import native
from workers.engine.engine import Engine, EngineOptions
from workers.engine.errors import EngineError, ModelError
from workers.engine.sampling import GREEDY, MOST_CALL_S, MOST_SLOW_CALLS, SLOW_CALL_S, Patience
from workers.engine.sequence import Work
from workers.engine.watchdog import Watchdog

SMALL = EngineOptions(parallel=4, cells=1024, context_window=512, threads=2)


def test_a_native_error_is_the_error_of_one_sequence_and_the_others_go_on() -> None:
    engine = Engine(open_model(), SMALL)
    try:
        good = [engine.submit(ask(engine, f"Say {n}", 24, ignore_eos=True)) for n in range(3)]
        bad_work = Work([5, 10**6, 7], 4, GREEDY)  # a token out of range: llama.cpp refuses the whole step
        engine._check = lambda work: work  # type: ignore[method-assign]  # let it through to the library
        bad = engine.submit(bad_work)
        assert refusal(bad).code is FailureCode.INTERNAL
        assert "llama.cpp could not compute it" in str(refusal(bad))
        assert [len(result(ticket).tokens) for ticket in good] == [24, 24, 24]
        assert engine.stats.failed_steps >= 1
        engine.forget()
        assert engine.stats.cells_used == 0
    finally:
        engine.close()


def test_an_interrupted_step_fails_with_a_timeout_and_the_next_work_is_done() -> None:
    engine = Engine(open_model(), EngineOptions(4, 4096, 4096, 2, 2048, 0.05), give_up=lambda: None)
    try:
        long = [int(token) for token in np.random.default_rng(1).integers(1000, 40000, 2000)]
        error = refusal(engine.submit(Work(long, 4, GREEDY)))
        assert error.code is FailureCode.TIMEOUT
        assert engine.stats.interrupted_steps >= 1
        engine.forget()
        assert engine.stats.cells_used == 0
    finally:
        engine.close()


def test_an_error_in_python_fails_what_runs_and_leaves_the_engine_working(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(open_model(), SMALL)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(engine._pace, "learn", lambda *_: 1 / 0)
            ticket = engine.submit(ask(engine, "Say a", 8))
            assert "division by zero" in str(refusal(ticket))
        assert result(engine.submit(ask(engine, "Say a", 2, ignore_eos=True))).finish_reason == "length"
    finally:
        engine.close()


def test_a_listener_that_fails_hurts_its_own_generation_only() -> None:
    engine = Engine(open_model(), SMALL)

    def fail(_text: str) -> None:
        raise ConnectionError("nobody listens")

    try:
        bad = engine.submit(ask(engine, "Say a", 8), fail)
        good = engine.submit(ask(engine, "Say b", 8, ignore_eos=True))
        assert "nobody listens" in str(refusal(bad))
        assert len(result(good).tokens) == 8
    finally:
        engine.close()


def test_closing_ends_what_is_unfinished_and_takes_nothing_new() -> None:
    engine = Engine(open_model(), SMALL)
    tickets = [engine.submit(ask(engine, f"Count to {n} million", 400, ignore_eos=True)) for n in range(8)]
    engine.close()
    engine.close()
    assert {refusal(ticket).code for ticket in tickets} == {FailureCode.OVERLOADED}
    with pytest.raises(EngineError, match="unloaded"):
        engine.submit(Work([1], 1))


def test_a_cache_that_no_memory_holds_is_refused() -> None:
    model = open_model()
    with pytest.raises(ModelError):
        Engine(model, EngineOptions(4, 2**31 - 1, 512, 2))
    model.close()


def test_the_watchdog_interrupts_first_and_gives_up_then() -> None:
    happened: list[str] = []
    gave_up = threading.Event()

    def give_up() -> None:
        happened.append("give up")
        gave_up.set()

    watchdog = Watchdog(0.1, lambda: happened.append("interrupt"), give_up)
    watchdog.begin()
    began_at = monotonic()
    assert gave_up.wait(10)
    assert 0.2 <= monotonic() - began_at < 5
    assert happened == ["interrupt", "give up"]
    assert watchdog.interruptions == 1
    watchdog.close()


def test_a_step_that_heeds_nothing_ends_its_process() -> None:
    """In a process of its own, whose native call is a sleep that no flag ends."""
    program = """
import ctypes, sys
from tests.workers.engine.test_engine_faults import SMALL, open_model
from workers.engine.engine import Engine, EngineOptions
from workers.engine.sequence import Work
engine = Engine(open_model(), EngineOptions(4, 1024, 512, 2, step_timeout_s=0.3))
engine._context.decode = lambda: ctypes.CDLL(None).sleep(60)
print("submitted", flush=True)
engine.submit(Work([1, 2, 3], 4)).future.result()
"""
    began_at = monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=ANSWER_S, check=False
    )
    assert "submitted" in ended.stdout
    assert ended.returncode == os.EX_SOFTWARE
    assert "engine.step_hangs" in ended.stdout + ended.stderr
    assert monotonic() - began_at < 40


AMBIGUOUS = f"""root ::= "xxxx" {"x? " * 260} "y"\nx ::= "x"\n"""
"""The tries refuse such a grammar; here it comes as if they had not seen it."""


def test_a_grammar_that_takes_too_long_fails_its_own_sequence_and_holds_no_other_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks, within_calls = itertools.count(), []
    done = threading.Event()
    last = [0]

    def tick() -> None:
        while not done.wait(0.01):
            last[0] = next(ticks)

    def apply(sampler: object, array: object, call: Callable[..., None] = native.grammar_apply) -> None:
        before = last[0]
        call(sampler, array)
        within_calls.append(last[0] - before)

    monkeypatch.setattr(native, "grammar_apply", apply)
    ticker = threading.Thread(target=tick)
    ticker.start()
    engine = Engine(open_model(), SMALL)
    try:
        good = [engine.submit(ask(engine, f"Say {n}", 12, ignore_eos=True)) for n in range(2)]
        bad = engine.submit(ask(engine, "Say x", 12, grammar=AMBIGUOUS, ignore_eos=True))
        assert refusal(bad).code is FailureCode.PROVIDER_REJECTED
        assert "takes too long" in str(refusal(bad))
        assert [len(result(ticket).tokens) for ticket in good] == [12, 12]
        assert max(within_calls) > 10
        engine.forget()
        assert engine.stats.cells_used == 0
    finally:
        done.set()
        ticker.join()
        engine.close()


def test_a_few_slow_calls_of_a_grammar_are_borne_and_many_are_not() -> None:
    patience = Patience()
    for _ in range(MOST_SLOW_CALLS):
        patience.spend(SLOW_CALL_S * 1.1)
        patience.spend(SLOW_CALL_S * 0.9)
    with pytest.raises(EngineError, match="takes too long"):
        patience.spend(SLOW_CALL_S * 1.1)
    with pytest.raises(EngineError, match="takes too long"):
        Patience().spend(MOST_CALL_S * 1.1)


def test_a_step_that_hangs_while_it_chooses_tokens_ends_its_process() -> None:
    """In a process of its own, where the choice of a token is a sleep."""
    program = """
import ctypes
from tests.workers.engine.test_engine_faults import open_model
from workers.engine.engine import Engine, EngineOptions
from workers.engine.sampling import Sampler
from workers.engine.sequence import Work
engine = Engine(open_model(), EngineOptions(4, 1024, 512, 2, step_timeout_s=0.5))
engine.submit(Work([1, 2, 3], 4)).future.result()
Sampler.choose = lambda *_: ctypes.CDLL(None).sleep(60)
print("submitted", flush=True)
engine.submit(Work([1, 2, 3], 4)).future.result()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=ANSWER_S, check=False
    )
    assert "submitted" in ended.stdout
    assert ended.returncode == os.EX_SOFTWARE
    assert "engine.step_hangs" in ended.stdout + ended.stderr


def test_an_engine_whose_thread_would_die_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    gave_up = threading.Event()
    engine = Engine(open_model(), SMALL, give_up=gave_up.set)
    monkeypatch.setattr(engine, "_fail_running", lambda _error: 1 / 0)
    monkeypatch.setattr(engine, "_plan", lambda: 1 / 0)
    ticket = engine.submit(ask(engine, "Say a", 4))
    assert gave_up.wait(ANSWER_S)
    assert not ticket.future.done()  # the end of the process answers for it
    monkeypatch.undo()
    engine.close()
