"""The KV cache's accounts, against a store that refuses what a context would refuse."""

import random

import numpy as np
import pytest

from workers.engine.cache import KVCache, Match, Tokens, common_beginning
from workers.engine.cells import CellLedger


class Cells:
    """Which tokens each sequence holds, with shared ones known as such: what llama.cpp keeps."""

    def __init__(self, cells: int) -> None:
        self.cells = cells
        self.held: dict[int, list[object]] = {}

    def share(self, source: int, sequence: int, tokens: int) -> None:
        assert sequence not in self.held
        assert len(self.held[source]) >= tokens
        self.held[sequence] = self.held[source][:tokens]

    def cut(self, sequence: int, tokens: int = 0) -> None:
        self.held[sequence] = self.held.get(sequence, [])[:tokens]
        if not self.held[sequence]:
            del self.held[sequence]

    def add(self, sequence: int, tokens: int) -> None:
        self.held.setdefault(sequence, []).extend(object() for _ in range(tokens))
        assert self.used <= self.cells, "a step without a place: what the cache is there to prevent"

    @property
    def used(self) -> int:
        return len({id(cell) for held in self.held.values() for cell in held})


def tokens(*values: int) -> Tokens:
    return np.array(values, dtype=np.int32)


@pytest.mark.parametrize(
    ("left", "right", "common"),
    [((1, 2, 3), (1, 2, 4), 2), ((1, 2), (1, 2, 3), 2), ((), (1,), 0), ((9,), (1,), 0), ((1, 2), (1, 2), 2)],
)
def test_common_beginning(left: tuple[int, ...], right: tuple[int, ...], common: int) -> None:
    assert common_beginning(tokens(*left), tokens(*right)) == common


def test_shared_cells_count_once_and_are_free_when_the_last_lets_go() -> None:
    ledger = CellLedger(10)
    ledger.extend(0, 4)
    ledger.share(0, 1, 3)
    ledger.extend(1, 2)
    assert (ledger.used, ledger.alone(0), ledger.alone(1)) == (6, 1, 2)
    ledger.release(0)
    assert ledger.used == 5
    ledger.release(1)
    assert ledger.used == 0
    with pytest.raises(IndexError):
        ledger.extend(2, 11)


def test_a_finished_sequence_is_shared_but_for_the_last_token_of_the_prompt() -> None:
    cache = KVCache(store := Cells(100), cells=100, slots=4, retained_cells=50)
    slot = cache.admit(10, None)
    assert slot is not None
    cache.grow(slot, 6)
    store.add(slot, 6)
    cache.retire(slot, tokens(1, 2, 3, 4, 5, 6))
    assert cache.match(tokens(1, 2, 3, 9)) == Match(slot, 3)
    assert cache.match(tokens(1, 2, 3)) == Match(slot, 2)
    assert cache.match(tokens(7, 8)) is None


def test_what_is_kept_makes_room_and_the_longest_unused_goes_first() -> None:
    cache = KVCache(store := Cells(30), cells=30, slots=8, retained_cells=30)
    slots = []
    for start in (0, 100):
        slot = cache.admit(10, None)
        assert slot is not None
        store.add(slot, 10)
        cache.grow(slot, 10)
        cache.retire(slot, np.arange(start, start + 10, dtype=np.int32))
        slots.append(slot)
    older = cache.match(np.arange(0, 10, dtype=np.int32))
    assert older is not None
    assert cache.admit(12, older) is not None  # uses the older one
    assert cache.match(np.arange(100, 110, dtype=np.int32)) is not None
    assert cache.admit(12, None) is not None  # needs room: the other has gone
    assert cache.match(np.arange(100, 110, dtype=np.int32)) is None
    assert cache.match(np.arange(0, 10, dtype=np.int32)) == older
    assert cache.admit(12, None) is None


@pytest.mark.parametrize("seed", range(20))
def test_random_lives_never_want_a_cell_that_is_not_there(seed: int) -> None:
    """Promises, sharing, eviction and giving up in any order: no step without a place, and no leak."""
    chance = random.Random(seed)
    store = Cells(64)
    cache = KVCache(store, cells=64, slots=6, retained_cells=chance.choice([0, 16, 64]))
    running: dict[int, tuple[Tokens, int]] = {}
    for _ in range(600):
        if chance.random() < 0.4:
            prompt = np.array([chance.choice([0, 0, 1]) for _ in range(chance.randint(1, 30))], dtype=np.int32)
            need = len(prompt) + chance.randint(1, 20)
            match = cache.match(prompt)
            slot = cache.admit(need, match)
            if slot is not None:
                shared = match.tokens if match else 0
                generated = np.array([chance.randint(2, 3) for _ in range(need - len(prompt))], dtype=np.int32)
                running[slot] = (np.concatenate([prompt, generated]), shared)
        elif running:
            slot = chance.choice(list(running))
            whole, computed = running[slot]
            count = min(chance.randint(1, 12), len(whole) - computed)
            if count:
                store.add(slot, count)
                cache.grow(slot, count)
            running[slot] = (whole, computed + count)
            if computed + count == len(whole) or chance.random() < 0.1:
                whole, computed = running.pop(slot)
                if chance.random() < 0.3:
                    cache.drop(slot)
                else:
                    cache.retire(slot, whole[:computed])
        assert cache.cells_used == store.used
    for slot in running:
        cache.drop(slot)
    cache.forget()
    assert (cache.cells_used, cache.retained, store.held) == (0, 0, {})
