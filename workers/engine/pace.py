"""How many prompt tokens a step may carry beside the sequences that are writing. Pure.

A step takes as long as its tokens. Whoever is writing feels a long prompt of somebody else as a pause between two
tokens, so the prompt comes in portions that keep a step within about twice the time that it took before
anybody's prompt was read. The times are measured as the engine runs: they differ by machine, by model, with the number
of sequences and with what the cache holds, which a long prompt fills for everyone.
"""

from collections.abc import Mapping, Sequence

_LONGEST = 2.0
"""The longest step, in steps of the same writers at a time when nobody's prompt was read."""

_AT_LEAST = 0.25
"""The prompts may add so much of the writers' own time in any case: they must come to an end."""

_SMALLEST = 4
_MEMORY = 0.8
_LONG_MEMORY = 0.98
_LOOK_AGAIN = 12
"""After so many steps with prompt tokens one goes without, to see what the writers' own time is by now: it grows with
what they have written."""

_DEARER = 1.3
"""A prompt token beside writers costs about so many times one in a step of its own, until that is known."""


class Pace:
    """Learns what steps cost; times in seconds."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._writing_s: dict[int, float] = {}
        self._calm_s: dict[int, float] = {}
        self._beside_s: float | None = None
        self._alone_s: float | None = None
        self._unseen = 0

    def learn(self, writing: int, prompt_tokens: int, took_s: float) -> None:
        """A step of so many writing sequences and prompt tokens took so long."""
        if not prompt_tokens:
            self._writing_s[writing] = _blend(self._writing_s.get(writing), took_s)
            # While prompts are read, what was calm is forgotten slowly: where they never end, it is no measure.
            memory = _LONG_MEMORY if self._unseen else _MEMORY
            self._calm_s[writing] = _blend(self._calm_s.get(writing), took_s, memory)
            self._unseen = 0
        elif not writing:
            self._alone_s = _blend(self._alone_s, took_s / prompt_tokens)
        elif prompt_tokens >= _SMALLEST:
            self._unseen += 1
            own_s = _nearest(self._writing_s, writing) or 0.0
            self._beside_s = _blend(self._beside_s, max(0.0, took_s - own_s) / prompt_tokens)

    def prompt_tokens(self, writing: int, reading: int, *, under_way: bool = True) -> int:
        """The most prompt tokens for the next step, with ``writing`` sequences that write and ``reading`` that
        are in their prompts. The more of them read than write, the longer the writers are made to wait.

        Those that arrived together with the readers, and have only just begun (nobody is ``under_way``), wait for
        them: all then write together, which takes the least time for all.
        """
        room = self._batch - writing
        if not writing or not under_way:
            return room
        own_s, token_s = _nearest(self._writing_s, writing), self._token_s
        if own_s is None or self._unseen >= _LOOK_AGAIN:
            return 0
        if not token_s:
            return min(_SMALLEST, room)
        calm_s = _nearest(self._calm_s, writing) or own_s
        allowed_s = max(_LONGEST * calm_s - own_s, _AT_LEAST * own_s) * max(1.0, reading / writing) ** 2
        return max(min(_SMALLEST, room), min(room, int(allowed_s / token_s)))

    @property
    def _token_s(self) -> float | None:
        """What a prompt token costs beside writers."""
        if self._beside_s is not None or self._alone_s is None:
            return self._beside_s
        return self._alone_s * _DEARER


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


def _nearest(times_s: Mapping[int, float], writing: int) -> float | None:
    """What is known for the number of writers next to this one."""
    return times_s[min(times_s, key=lambda known: abs(known - writing))] if times_s else None


def _blend(before: float | None, now: float, memory: float = _MEMORY) -> float:
    return now if before is None else memory * before + (1 - memory) * now
