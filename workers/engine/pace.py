"""How many prompt tokens a step may carry beside the sequences that are writing. Pure.

A step takes as long as its tokens. Whoever is writing feels a long prompt of somebody else as a pause between two
tokens, so the prompt comes in portions that keep a step within about twice the time of one without it. The times are
measured as the engine runs: they differ by machine, by model and with the number of sequences.
"""

from collections.abc import Sequence

_LESS = 0.75
"""The share of a step's own time that the prompts of others may add to it."""

_SMALLEST = 8
_MEMORY = 0.8


class Pace:
    """Learns what steps cost; times in seconds."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._writing_s: dict[int, float] = {}
        self._per_token_s: float | None = None

    def learn(self, writing: int, prompt_tokens: int, took_s: float) -> None:
        """A step of so many writing sequences and prompt tokens took so long."""
        if not prompt_tokens:
            self._writing_s[writing] = _blend(self._writing_s.get(writing), took_s)
            return
        rest_s = took_s - (self._own_s(writing) or 0.0 if writing else 0.0)
        if rest_s > 0 and (prompt_tokens >= _SMALLEST or self._per_token_s is None):
            self._per_token_s = _blend(self._per_token_s, rest_s / prompt_tokens)

    def prompt_tokens(self, writing: int, reading: int, *, under_way: bool = True) -> int:
        """The most prompt tokens for the next step, with ``writing`` sequences that write and ``reading`` that
        are in their prompts. The more of them read than write, the longer the writers are made to wait.

        Those that arrived together with the readers, and have only just begun (nobody is ``under_way``), wait for
        them: all then write together, which takes the least time for all.
        """
        room = self._batch - writing
        own_s = self._own_s(writing)
        if not writing or not under_way or own_s is None or self._per_token_s is None:
            return room
        allowed_s = own_s * _LESS * max(1.0, reading / writing) ** 2
        return max(min(_SMALLEST, room), min(room, int(allowed_s / self._per_token_s)))

    def _own_s(self, writing: int) -> float | None:
        if not self._writing_s:
            return None
        nearest = min(self._writing_s, key=lambda known: abs(known - writing))
        return self._writing_s[nearest]


def share_out(room: int, wanted: Sequence[int]) -> list[int]:
    """Divide a step's prompt tokens among those who want them, in the order of their arrival.

    While others wait, nobody has more than half: a long prompt leaves room for the short ones behind it, and is
    not overtaken for ever by them either. What is left over goes round again.
    """
    given = [0] * len(wanted)
    most = room if len(wanted) < 2 else (room + 1) // 2
    for limit in (most, room):
        for index, want in enumerate(wanted):
            more = min(want - given[index], limit - given[index], room)
            if more > 0:
                given[index] += more
                room -= more
    return given


def _blend(before: float | None, now: float) -> float:
    return now if before is None else _MEMORY * before + (1 - _MEMORY) * now
