"""The columns that the first row of a file names."""

from collections.abc import Sequence
from dataclasses import dataclass

from api.batches.records import MAX_COLUMNS, Unreadable
from api.bodies import shorten


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of a file's columns, and how many cells its first row has, with empty ones at its end."""

    names: Sequence[str]
    cells: int

    def trouble_with(self, record: Sequence[str]) -> str | None:
        """What is wrong with a row that has more or fewer cells than there are columns.

        Nothing is wrong when the cells after the last column are empty: some programs end lines with separators.
        """
        width = len(self.names)
        further = next((place for place in range(width, len(record)) if record[place].strip()), None)
        if len(record) < width or (further is not None and further >= self.cells):
            return f"The first row names {width} columns; this row has {len(record)}."
        if further is not None:
            return f"Column {further + 1} has no name, and this row has something in it; name it in the first row."
        return None


def read_columns(cells: Sequence[str], line: int) -> Columns:
    """The columns that a first row names; raises Unreadable.

    Empty cells at the end of the row name nothing. One other column may have no name, such as the index that pandas
    writes; the results have it as it is.
    """
    if len(cells) > MAX_COLUMNS:
        raise Unreadable(f"The file has {len(cells):,} columns; {MAX_COLUMNS:,} are possible.", line)
    names = [cell.strip() for cell in cells]
    while names and not names[-1]:
        names.pop()
    nameless = [place for place, name in enumerate(names, 1) if not name]
    if len(nameless) > 1:
        raise Unreadable(
            f"Columns {nameless[0]} and {nameless[1]} have no name; the first row names the columns.", line
        )
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise Unreadable(f"Two columns are named {shorten(twice)!r}.", line)
    if bad := next((name for name in names if "\0" in name), None):
        raise Unreadable(f"A column's name contains the character U+0000: {shorten(bad)!r}.", line)
    return Columns(names, len(cells))
