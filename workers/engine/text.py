"""From bytes of tokens to text: UTF-8 and stop strings across the borders of tokens. Pure."""

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns a generation's bytes into text that may be shown, piece by piece.

    What could be the beginning of a stop string is held back until more is known; a stop string itself is never
    given out. Bytes that are no UTF-8 become the replacement character.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stopped = False
        self._stops = [stop for stop in stops if stop]
        self._longest = max(map(len, self._stops), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def push(self, piece: bytes) -> str:
        """The text that a further token makes certain; ``stopped`` is set when a stop string is complete."""
        return self._advance(self._decoder.decode(piece))

    def finish(self) -> str:
        """The rest, when no more tokens come."""
        if self.stopped:
            return ""
        certain = self._advance(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""  # nothing, if that completed a stop string
        return certain + rest

    def _advance(self, new: str) -> str:
        text = self._held + new
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = self._possible_beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _possible_beginning(self, text: str) -> int:
        """The length of the longest end of ``text`` with which some stop string begins."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
