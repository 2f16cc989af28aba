"""How many tokens of a vocabulary a text takes at least, and which. Pure."""

from collections.abc import Mapping

_LONGEST = 16
"""Bytes of the longest token that is used: longer ones are rare, and each length is one more look-up."""


class Pieces:
    """The tokens of a vocabulary by their bytes."""

    def __init__(self, tokens: Mapping[bytes, int]) -> None:
        self._tokens = {piece: token for piece, token in tokens.items() if 0 < len(piece) <= _LONGEST}
        self._longest = max(map(len, self._tokens), default=0)

    def counts(self, text: bytes) -> list[float]:
        """For each place in a text, the fewest tokens that write the rest from there; infinite where none do."""
        return self._fewest(text)[0]

    def split(self, text: bytes) -> list[int] | None:
        """The fewest tokens that write a text; None where none do."""
        counts, steps = self._fewest(text)
        if counts[0] == float("inf"):
            return None
        tokens, at = [], 0
        while at < len(text):
            tokens.append(self._tokens[text[at : at + steps[at]]])
            at += steps[at]
        return tokens

    def _fewest(self, text: bytes) -> tuple[list[float], list[int]]:
        """The fewest tokens from each place on, and the length of the first of them."""
        counts, steps = [0.0] * (len(text) + 1), [0] * len(text)
        for at in reversed(range(len(text))):
            best, step = float("inf"), 0
            for length in range(1, min(self._longest, len(text) - at) + 1):
                if counts[at + length] + 1 < best and text[at : at + length] in self._tokens:
                    best, step = counts[at + length] + 1, length
            counts[at], steps[at] = best, step
        return counts, steps
