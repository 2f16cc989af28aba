"""A queue of work in which tenants rotate."""

from collections import defaultdict, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import rotation
from models.rotation import Rotation


def test_however_much_one_tenant_puts_in_another_is_next() -> None:
    waiting: Rotation[str] = Rotation()
    for number in range(60):
        waiting.put("a", f"a{number}")
    assert waiting.take() == "a0"
    waiting.put("b", "b0")
    waiting.put("b", "b1")
    assert [waiting.take() for _ in range(5)] == ["b0", "a1", "b1", "a2", "a3"]
    assert len(waiting) == 56


def test_who_comes_again_and_again_with_one_item_does_not_pass_who_waits() -> None:
    waiting: Rotation[str] = Rotation()
    waiting.put("flood", "f")
    served = []
    for tenant in ("a", "b", "c"):
        waiting.put(tenant, tenant)
    for _ in range(6):
        item = waiting.take()
        served.append(item)
        if item == "f":
            waiting.put("flood", "f")
    assert served == ["f", "a", "b", "c", "f", "f"]


def test_an_empty_rotation_has_nothing_to_take() -> None:
    with pytest.raises(IndexError):
        Rotation().take()


def test_what_nobody_waits_for_is_taken_out_and_costs_its_tenant_no_turn() -> None:
    waiting: Rotation[str] = Rotation()
    waiting.put("a", "gone")
    waiting.put("b", "b")
    waiting.put("a", "a")
    assert waiting.discard("a", "gone")
    assert not waiting.discard("a", "gone")
    assert [waiting.take(), waiting.take()] == ["a", "b"]
    assert len(waiting) == 0


def test_what_is_remembered_of_tenants_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "MOST_REMEMBERED", 10)
    waiting: Rotation[int] = Rotation()
    for tenant in range(1000):
        waiting.put(tenant, tenant)
        waiting.take()
    assert len(waiting._served) == 10


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 4)),
        st.tuples(st.just("take"), st.just(0)),
        st.tuples(st.just("discard"), st.integers(0, 4)),
    ),
    max_size=80,
)


@given(steps)
def test_the_tenant_served_least_recently_is_next_and_its_items_keep_their_order(steps: list[tuple[str, int]]) -> None:
    waiting: Rotation[int] = Rotation()
    items: defaultdict[int, deque[int]] = defaultdict(deque)
    served: dict[int, int] = {}
    for number, (step, tenant) in enumerate(steps):
        if step == "put":
            waiting.put(tenant, number)
            items[tenant].append(number)
        elif step == "discard" and items[tenant]:
            assert waiting.discard(tenant, items[tenant].pop())
        elif step == "take" and any(items.values()):
            item = waiting.take()
            (chosen,) = (name for name, held in items.items() if held and held[0] == item)
            assert served.get(chosen, -1) == min(served.get(name, -1) for name, held in items.items() if held)
            items[chosen].popleft()
            served[chosen] = number
        assert len(waiting) == sum(map(len, items.values()))
