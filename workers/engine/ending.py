"""Keeps an answer in a form within its ``max_tokens``: it is never cut, because its end is always within reach.

After each token the fewest tokens that end the answer are known (:mod:`workers.engine.grammar_states`). A token after
which they are more than what is left is refused; where none fits but those, the shortest end is written.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable

import structlog

from workers.engine.gbnf_reader import read_grammar
from workers.engine.grammar_states import INFINITE, CharClass, GrammarStates, Literal, State, TooManyPlacesError
from workers.engine.pieces import Pieces

_MAX_GRAMMAR = 128 * 1024
"""Characters of a grammar that is followed: of a longer one, answers may be cut at ``max_tokens``."""

_KEPT = 16

log = structlog.get_logger()


class Ending:
    """Follows one answer through its grammar."""

    def __init__(self, states: GrammarStates, pieces: Pieces, piece: Callable[[int], bytes]) -> None:
        self._states = states
        self._pieces = pieces
        self._piece = piece
        self._state = states.start
        self._pending = b""
        self._plan: list[int] | None = None

    @property
    def fewest(self) -> int:
        """The fewest tokens that end the answer from here."""
        return len(self._shortest())

    @property
    def may_end(self) -> bool:
        """Whether the answer is one as it is."""
        return self._state.ends and not self._pending

    @property
    def complete(self) -> bool:
        """Whether the answer is one as it is, and nothing can follow."""
        return self._state.complete and not self._pending

    def fits(self, token: int, left: int) -> bool:
        """Whether the answer, after a token, can end within the ``left`` tokens that it is one of."""
        reached = self._after(token)
        if reached is None:
            return False
        state, pending = reached
        if not pending and state.cost < left:
            return True
        if self._plan is not None and self._plan[:1] == [token] and len(self._plan) <= left:
            return True
        end = self._end_from(state, pending)
        return end is not None and len(end) < left

    def next_token(self) -> int:
        """The first token of the shortest end."""
        self._plan = self._shortest()
        return self._plan[0]

    def advance(self, token: int) -> None:
        """Note the token that follows; one that fits."""
        reached = self._after(token)
        if reached is None:
            raise ValueError("the token does not fit the grammar")
        self._plan = self._plan[1:] if self._plan is not None and self._plan[:1] == [token] else None
        self._state, self._pending = reached

    def _shortest(self) -> list[int]:
        found = self._end_from(self._state, self._pending)
        if found is None or (self._plan is not None and len(self._plan) < len(found)):
            found = self._plan
        return found or []

    def _after(self, token: int) -> tuple[State, bytes] | None:
        """Where a token leads; None when the grammar does not allow it."""
        state = self._state
        if not self._pending and token in state.after_tokens:
            known = state.after_tokens[token]
            return None if known is None else (known, b"")
        piece = self._piece(token)
        reached = self._read(self._pending + piece) if piece else None
        if not self._pending and (reached is None or not reached[1]):
            state.after_tokens[token] = None if reached is None else reached[0]
        return reached

    def _read(self, text: bytes) -> tuple[State, bytes] | None:
        pending = b""
        try:
            chars = text.decode()
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                return None
            chars, pending = text[: error.start].decode(), text[error.start :]
        state: State | None = self._state
        for char in chars:
            state = None if state is None else self._states.after(state, char)
        return None if state is None else (state, pending)

    def _end_from(self, state: State, pending: bytes) -> list[int] | None:
        """The tokens of the shortest end; None when there is none."""
        if pending:
            return self._end_of_character(state, pending)
        if state.plan is None and state.cost < INFINITE:
            state.plan = self._pieces.split(self._states.shortest(state).encode())
        return state.plan

    def _end_of_character(self, state: State, pending: bytes) -> list[int] | None:
        """The shortest end from within a character."""
        best: list[int] | None = None
        for char in dict.fromkeys(_beginning_with(state, pending)):
            following = self._states.after(state, char)
            rest = self._pieces.split(char.encode()[len(pending) :])
            end = None if following is None or rest is None else self._end_from(following, b"")
            if rest is not None and end is not None and (best is None or len(rest) + len(end) < len(best)):
                best = rest + end
        return best


class Endings:
    """The grammars that the answers of one model follow, the latest few of them; for many threads."""

    def __init__(self, pieces: Callable[[], Pieces], piece: Callable[[int], bytes]) -> None:
        self._make_pieces = pieces
        self._piece = piece
        self._pieces: Pieces | None = None
        self._known: OrderedDict[str, GrammarStates | None] = OrderedDict()
        self._lock = threading.Lock()

    def follow(self, grammar: str) -> Ending | None:
        """An answer's way through a grammar; None for one that is too large or too ambiguous to follow."""
        with self._lock:
            if grammar not in self._known:
                self._known[grammar] = self._build(grammar)
                if len(self._known) > _KEPT:
                    self._known.popitem(last=False)
            self._known.move_to_end(grammar)
            states, pieces = self._known[grammar], self._pieces
        return None if states is None or pieces is None else Ending(states, pieces, self._piece)

    def _build(self, grammar: str) -> GrammarStates | None:
        if len(grammar) > _MAX_GRAMMAR:
            return None
        if self._pieces is None:
            self._pieces = self._make_pieces()
        try:
            return GrammarStates(read_grammar(grammar), self._pieces)
        except (ValueError, TooManyPlacesError, RecursionError) as problem:
            log.warning("grammar.not_followed", problem=str(problem))
            return None


def _beginning_with(state: State, pending: bytes) -> list[str]:
    """Characters whose bytes begin with some, one for each range that may follow."""
    found = []
    length = 2 if pending[0] < 0xE0 else 3 if pending[0] < 0xF0 else 4
    low, high = _bounds(pending, length)
    for place in state.places:
        match place.node:
            case Literal(text, at) if text[at].encode().startswith(pending):
                found.append(text[at])
            case CharClass(ranges):
                inside = [max(low, first) for first, last in ranges if first <= high and last >= low]
                found += [chr(code) for code in inside[:1]]
    return found


def _bounds(pending: bytes, length: int) -> tuple[int, int]:
    """The least and the greatest code point whose bytes begin with some."""
    code = pending[0] & (0xFF >> (length + 1))
    for byte in pending[1:]:
        code = code << 6 | byte & 0x3F
    missing = 6 * (length - len(pending))
    least = {2: 0x80, 3: 0x800, 4: 0x10000}[length]
    return max(least, code << missing), min(0x10FFFF, (code + 1 << missing) - 1)
