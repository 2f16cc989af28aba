"""Keeps the contents of messages text, whatever they spell. Pure.

A chat template writes its marks, such as ``<|im_end|>``, around contents that may spell the same marks: cells of a
spreadsheet, mails, pages. Where a spelling begins within a content, a seam is put into it before the template is
rendered: one character that no content has and that templates carry along. The rendered prompt is cut at its seams,
and each part turned into tokens by itself, so that no part has a mark that a content has spelled.

A prompt whose contents spell no marks has no seams: it is turned into tokens as it always was.
"""

from collections.abc import Collection, Iterator
from itertools import pairwise

Messages = list[dict[str, str]]

_SEAMS = (*range(0xFDD0, 0xFDF0), *range(0xF0000, 0xFFFFE))
"""Characters for use within a program, then those of a private plane."""


class Marks:
    """The spellings of a model's control tokens."""

    def __init__(self, spellings: Collection[str]) -> None:
        self._spellings = frozenset(text for text in spellings if len(text) > 1)
        self._firsts = frozenset(text[0] for text in self._spellings)
        self._lengths = sorted({len(text) for text in self._spellings})
        self._beginnings = frozenset(text[:at] for text in self._spellings for at in range(1, len(text)))
        self._ends = frozenset(text[at:] for text in self._spellings for at in range(1, len(text)))

    def guard(self, messages: Messages) -> tuple[Messages, str]:
        """The messages with a seam in every spelling of a mark, and the seam; an empty one where none is needed.

        A content that a template might complete to a mark has a seam at its edge.
        """
        places = [self._seams(message["content"]) for message in messages]
        if not any(places):
            return messages, ""
        seam = _unused_character(messages)
        return [
            {**message, "content": _with(seam, message["content"], at)}
            for message, at in zip(messages, places, strict=True)
        ], seam

    def split(self, prompt: str, seam: str) -> list[str]:
        """A rendered prompt in parts, cut where a content spells a mark, alone or with what is beside it."""
        if not seam:
            return [prompt]
        escaped = seam.encode("ascii", "backslashreplace").decode()  # as a template's `tojson` writes it
        pieces = prompt.replace(escaped, seam).split(seam)
        parts = [pieces[0]]
        for piece in pieces[1:]:
            if self._crosses(parts[-1], piece):
                parts.append(piece)
            else:
                parts[-1] += piece
        return [part for part in parts if part]

    def _seams(self, content: str) -> list[int]:
        """Where a content needs seams."""
        longest = self._lengths[-1] if self._lengths else 0
        places = {at + 1 for at in self._starts(content)}
        inner = 0 < len(content) < longest and any(content in text for text in self._spellings)
        if inner or any(content[:length] in self._ends for length in range(1, longest)):
            places.add(0)
        if inner or any(content[-length:] in self._beginnings for length in range(1, longest)):
            places.add(len(content))
        return sorted(places)

    def _starts(self, text: str) -> Iterator[int]:
        """Where the spellings within a text start."""
        for first in self._firsts:
            at = text.find(first)
            while at >= 0:
                if any(text[at : at + length] in self._spellings for length in self._lengths):
                    yield at
                at = text.find(first, at + 1)

    def _crosses(self, left: str, right: str) -> bool:
        """Whether a spelling begins in one text and ends in the next."""
        longest = self._lengths[-1]
        left, right = left[1 - longest :], right[: longest - 1]
        return any(at < len(left) and self._reaches(left + right, at, len(left)) for at in self._starts(left + right))

    def _reaches(self, text: str, at: int, border: int) -> bool:
        return any(
            text[at : at + length] in self._spellings for length in self._lengths if border < at + length <= len(text)
        )


def _with(seam: str, content: str, places: list[int]) -> str:
    edges = [0, *places, len(content)]
    return seam.join(content[start:end] for start, end in pairwise(edges))


def _unused_character(messages: Messages) -> str:
    used = set().union(*(message["content"] for message in messages))
    return next((char for code in _SEAMS if (char := chr(code)) not in used), chr(_SEAMS[0]))
