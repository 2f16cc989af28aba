"""The KV cache as the engine uses it: sequences that run, and finished ones kept for what others may share.

A sequence is admitted with a promise of all the cells that it may ever need, so no step is refused for want of them.
Beginnings are shared at any length: the system prompt of many jobs, the template of a batch, a conversation's
earlier turns are computed once while somebody keeps them. Of finished sequences those last used stay, until their
cells are wanted or there are more than ``retained_cells``: each cell that is kept costs every step a little.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from workers.engine.cells import CellLedger

Tokens = npt.NDArray[np.int32]


class Store(Protocol):
    """Where the keys and values are: a context."""

    def share(self, source: int, sequence: int, tokens: int) -> None: ...

    def cut(self, sequence: int, tokens: int = 0) -> None: ...


@dataclass(frozen=True, slots=True)
class Match:
    """A sequence whose first ``tokens`` are those of a prompt."""

    slot: int
    tokens: int


class KVCache:
    """Slots for sequences, their cells and what is kept; used from the engine's thread."""

    def __init__(self, store: Store, *, cells: int, slots: int, retained_cells: int) -> None:
        self._store = store
        self._ledger = CellLedger(cells)
        self._free_slots = list(range(slots - 1, -1, -1))
        self._promised: dict[int, int] = {}
        self._retained: OrderedDict[int, Tokens] = OrderedDict()
        self._retained_cells = retained_cells

    @property
    def cells(self) -> int:
        return self._ledger.cells

    @property
    def cells_used(self) -> int:
        """Cells that running or kept sequences hold."""
        return self._ledger.used

    @property
    def retained(self) -> int:
        """Finished sequences that are kept."""
        return len(self._retained)

    def match(self, prompt: Tokens) -> Match | None:
        """The kept sequence that shares most of a prompt's beginning; its last token is never shared, since its
        logits are wanted."""
        best = None
        for slot, tokens in self._retained.items():
            common = common_beginning(prompt[:-1], tokens)
            if common and (best is None or common > best.tokens):
                best = Match(slot, common)
        return best

    def admit(self, need: int, match: Match | None) -> int | None:
        """A slot for a sequence of at most ``need`` tokens, of which those of ``match`` are there already.

        None while there is no slot or no room; nothing has changed then but for what was kept.
        """
        new = need - (match.tokens if match else 0)
        spared = match.slot if match else None
        while not self._free_slots or self._room < new:
            if not self._evict(spared):
                return None
        slot = self._free_slots.pop()
        self._promised[slot] = new
        if match is not None:
            self._store.share(match.slot, slot, match.tokens)
            self._ledger.share(match.slot, slot, match.tokens)
            if match.slot in self._retained:
                self._retained.move_to_end(match.slot)
        return slot

    def grow(self, slot: int, tokens: int) -> None:
        """A step has computed further tokens of a sequence."""
        self._ledger.extend(slot, tokens)
        self._promised[slot] -= tokens

    def retire(self, slot: int, tokens: Tokens) -> None:
        """A sequence is finished; keep it, for its first ``tokens`` are computed."""
        del self._promised[slot]
        self._retained[slot] = tokens
        while self._retained and self._kept_cells() > self._retained_cells:
            self._evict(None)

    def drop(self, slot: int) -> None:
        """A sequence is given up; keep nothing of it."""
        del self._promised[slot]
        self._free(slot)

    def forget(self) -> None:
        """Keep nothing of the finished."""
        while self._evict(None):
            pass

    @property
    def _room(self) -> int:
        return self._ledger.cells - self._ledger.used - sum(self._promised.values())

    def _kept_cells(self) -> int:
        return sum(self._ledger.alone(slot) for slot in self._retained)

    def _evict(self, spared: int | None) -> bool:
        """Let go of the finished sequence that was used the longest ago."""
        slot = next((slot for slot in self._retained if slot != spared), None)
        if slot is None:
            return False
        del self._retained[slot]
        self._free(slot)
        return True

    def _free(self, slot: int) -> None:
        self._store.cut(slot)
        self._ledger.release(slot)
        self._free_slots.append(slot)


def common_beginning(left: Tokens, right: Tokens) -> int:
    """How many first tokens two sequences have in common."""
    length = min(len(left), len(right))
    same = left[:length] == right[:length]
    return length if same.all() else int(same.argmin())
