"""The columns that the first row of a file names."""

from collections.abc import Sequence
from dataclasses import dataclass

from api.batches.records import MAX_COLUMNS, Unreadable
from api.bodies import shorten


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of a file's columns, and how many cells the first row has: more, where those at its end are empty."""

    names: Sequence[str]
    cells: int

    def trouble_with(self, record: Sequence[str]) -> str | None:
        """What is wrong with a row that has another number of cells than there are columns.

        Nothing where the cells that are too many are empty: separators at the ends of lines.
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

    Names at the end of the row may be missing. One other column may have none, such as the index that pandas writes;
    the results have it as it is.
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
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]  # remembers
        raise Unreadable(f"Two columns are named {shorten(twice)!r}.", line)
    if bad := next((name for name in names if "\0" in name), None):
        raise Unreadable(f"A column's name contains the character U+0000: {shorten(bad)!r}.", line)
    return Columns(names, len(cells))
