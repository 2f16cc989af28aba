"""What becomes of a field of a request: the form of the table's rows.

A row's ``path`` is ``messages[].content[].text`` for a field of the objects in a list of the objects in a list. A row
such as ``messages[].role=tool`` is for the objects in which ``role`` is ``tool``. A field without a row of its own is
covered by that of the object around it, if that one is ignored, refused, or kept as it is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Does(StrEnum):
    """What a field does here."""

    USED = "used"
    IGNORED = "ignored"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Field:
    """A row: what becomes of a field.

    ``note`` says what a used field is for, why an ignored one changes nothing, or what to do instead of a refused one.
    ``neutral``: values that change nothing, so that the field is taken for absent. ``verbatim``: what is in it is the
    caller's own and kept as it is, nulls too. ``seen_in``: who sends it, where that is not OpenAI's client.
    """

    path: str
    does: Does
    note: str = ""
    neutral: tuple[object, ...] = ()
    verbatim: bool = False
    seen_in: str = ""

    def is_neutral(self, value: object) -> bool:
        """Whether a value changes nothing; True is not 1."""
        return any(value == neutral and type(value) is type(neutral) for neutral in self.neutral)


Table = Mapping[str, Field]
"""Rows by their paths."""


def used(path: str, note: str = "", *, neutral: tuple[object, ...] = (), verbatim: bool = False, by: str = "") -> Field:
    """A row of a field that is used."""
    return Field(path, Does.USED, note, neutral, verbatim, by)


def ignored(path: str, why: str, *, by: str = "") -> Field:
    """A row of a field that is accepted with any value and changes nothing."""
    return Field(path, Does.IGNORED, why, seen_in=by)


def refused(path: str, instead: str, *, neutral: tuple[object, ...] = (), by: str = "") -> Field:
    """A row of a field that is refused, unless its value is one of ``neutral``; ``instead`` is told to the caller."""
    return Field(path, Does.REFUSED, instead, neutral, seen_in=by)


def table_of(rows: Iterable[Field], *changes: Iterable[Field]) -> Table:
    """A table of rows, some of them replaced by others of the same path."""
    table: dict[str, Field] = {}
    for group in (rows, *changes):
        table.update({field.path: field for field in group})
    return table
