"""Orders wait in turns of tenants."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.workers.engine.test_engine import ask, open_model, result
from workers.engine.engine import Engine, EngineOptions
from workers.engine.queueing import WaitingOrders
from workers.engine.sampling import GREEDY
from workers.engine.sequence import Work

ONE_AT_A_TIME = EngineOptions(parallel=1, cells=1024, context_window=512, threads=2)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(open_model(), ONE_AT_A_TIME)
    yield engine
    engine.close()


def orders(*names: str) -> WaitingOrders[str]:
    waiting: WaitingOrders[str] = WaitingOrders(lambda order: order[0])
    for name in names:
        waiting.put(name)
    return waiting


def serve_all(waiting: WaitingOrders[str]) -> list[str]:
    served = []
    while len(waiting):
        served.append(next(iter(waiting)))
        waiting.serve(served[-1])
    return served


def test_tenants_rotate_and_each_keeps_its_order() -> None:
    waiting = orders("a1", "a2", "a3", "b1", "b2", "c1")
    assert list(waiting) == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert serve_all(waiting) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_a_newcomer_is_before_all_who_were_served() -> None:
    waiting = orders("a1", "a2", "b1", "b2")
    waiting.serve("a1")
    waiting.serve("b1")
    waiting.put("c1")
    assert serve_all(waiting) == ["c1", "a2", "b2"]


def test_who_was_served_waits_for_the_others_even_when_it_comes_back() -> None:
    waiting = orders("a1")
    waiting.serve("a1")
    for order in ("a2", "b1"):
        waiting.put(order)
    assert serve_all(waiting) == ["b1", "a2"]


def test_what_is_taken_out_of_turn_counts_for_nothing() -> None:
    waiting = orders("a1", "a2", "b1")
    waiting.remove("a1")
    assert list(waiting) == ["a2", "b1"]
    waiting.clear()
    assert (len(waiting), list(waiting)) == (0, [])


def test_one_tenants_many_orders_hold_up_no_other(engine: Engine) -> None:
    finished: list[str] = []
    running = engine.submit(ask(engine, "Say a", 24, ignore_eos=True, tenant="a"))
    works = [("a", f"Letter {n}, of a") for n in range(8)] + [("b", f"Letter {n}, of b") for n in range(2)]
    tickets = []
    for tenant, text in works:
        work = Work(engine.model.prompt([{"role": "user", "content": text}]), 2, GREEDY, ignore_eos=True, tenant=tenant)
        ticket = engine.submit(work)
        ticket.future.add_done_callback(lambda _, tenant=tenant: finished.append(tenant))  # type: ignore[misc]
        tickets.append(ticket)
    assert len(result(running).tokens) == 24
    for ticket in tickets:
        result(ticket)
    assert finished[:4] == ["b", "a", "b", "a"]
    assert sorted(finished) == ["a"] * 8 + ["b"] * 2


def test_tenants_share_the_beginnings_of_their_prompts() -> None:
    system = {"role": "system", "content": "You sort letters by their subject, in one word. " * 6}
    engine = Engine(open_model(), replace(ONE_AT_A_TIME, parallel=2))
    tickets = []
    for at, tenant in enumerate(("a", "a", "b", "b")):
        prompt = engine.model.prompt([system, {"role": "user", "content": f"Letter {at}"}])
        tickets.append(engine.submit(Work(prompt, 2, GREEDY, ignore_eos=True, tenant=tenant)))
    for ticket in tickets:
        result(ticket)
    engine.close()
    assert sum(ticket.cached_tokens > 40 for ticket in tickets) == 3
