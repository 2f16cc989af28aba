"""What the readers of CSV, JSONL and XLSX have in common: columns, and records with the lines where they begin."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

FORMATS = ("csv", "jsonl", "xlsx")
MAX_COLUMNS = 1000
MAX_CELL_CHARS = 1 << 20
MAX_RECORD_CHARS = 4 << 20
"""The most characters of one row: its cells and the separators between them."""

RECORDS_AT_ONCE = 1000
CHARS_AT_ONCE = 1 << 20
"""A group of records ends at one of these. Work that is done once for a group costs each row little."""


class Unreadable(Exception):
    """A file that cannot be read on: what is wrong with it, as a sentence."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


Record = tuple[list[str], int, int]
"""A record: its cells, the line where it begins, and its size in characters or bytes."""


@dataclass(frozen=True, slots=True)
class Group:
    """Records that are read together: the cells of each, and the line where each begins."""

    cells: list[list[str]]
    lines: list[int]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a CSV file is written, so that its results are written the same way.

    ``mark``: with a byte-order mark. ``encoding`` is UTF-8 or, with a mark, UTF-16.
    """

    separator: str = ","
    line_end: str = "\r\n"
    mark: bool = False
    encoding: str = "utf-8"


@dataclass(frozen=True, slots=True)
class Table:
    """A file that is being read: its columns, its records in groups, and how its results are to be written as CSV."""

    columns: Sequence[str]
    groups: Iterator[Group]
    dialect: Dialect = Dialect()


def grouped(records: Iterable[Record]) -> Iterator[Group]:
    """Records in groups, each of which ends at RECORDS_AT_ONCE or CHARS_AT_ONCE."""
    cells: list[list[str]] = []
    lines: list[int] = []
    chars = 0
    for record, line, size in records:
        cells.append(record)
        lines.append(line)
        chars += size
        if len(lines) == RECORDS_AT_ONCE or chars >= CHARS_AT_ONCE:
            yield Group(cells, lines)
            cells, lines, chars = [], [], 0
    if lines:
        yield Group(cells, lines)
