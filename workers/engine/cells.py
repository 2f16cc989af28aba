"""Which cells of the KV cache which sequence holds. Pure.

A cell keeps the keys and values of one token. Sequences with a common beginning hold the same cells, and a cell is
free when the last of them lets go. The native library knows this too, but tells only by refusing a step; this ledger
knows beforehand, so that none is ever refused.
"""


class CellLedger:
    """The cells of one context, numbered as they are handed out (the native library has its own places)."""

    def __init__(self, cells: int) -> None:
        self.cells = cells
        self._free = list(range(cells - 1, -1, -1))
        self._holders = [0] * cells
        self._held: dict[int, list[int]] = {}

    @property
    def used(self) -> int:
        """The cells that some sequence holds."""
        return self.cells - len(self._free)

    def length(self, sequence: int) -> int:
        """The tokens whose cells a sequence holds."""
        return len(self._held.get(sequence, ()))

    def extend(self, sequence: int, tokens: int) -> None:
        """Give a sequence cells of its own for further tokens; IndexError when there are too few."""
        held = self._held.setdefault(sequence, [])
        for _ in range(tokens):
            cell = self._free.pop()
            self._holders[cell] = 1
            held.append(cell)

    def share(self, source: int, sequence: int, tokens: int) -> None:
        """Let a new sequence hold the first cells of another."""
        if self._held.get(sequence):
            raise ValueError(f"sequence {sequence} holds cells already")
        shared = self._held[source][:tokens]
        for cell in shared:
            self._holders[cell] += 1
        self._held[sequence] = shared

    def release(self, sequence: int) -> None:
        """Let go of everything that a sequence holds."""
        for cell in self._held.pop(sequence, ()):
            self._holders[cell] -= 1
            if not self._holders[cell]:
                self._free.append(cell)

    def alone(self, sequence: int) -> int:
        """The cells that would be free if a sequence let go."""
        return sum(self._holders[cell] == 1 for cell in self._held.get(sequence, ()))
