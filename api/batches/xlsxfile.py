"""Reading a workbook: its first visible sheet, whose first row with something in it names the columns.

The table may begin anywhere on the sheet. Hidden and filtered rows and columns are read: the CSV that a spreadsheet
writes has them too.
"""

from collections.abc import Iterator
from itertools import chain, islice
from typing import BinaryIO

from api.batches.columns import Columns, read_columns
from api.batches.problems import Problems
from api.batches.records import (
    MAX_CELL_CHARS,
    MAX_RECORD_CHARS,
    Dialect,
    Record,
    Table,
    Unreadable,
    grouped,
)
from api.batches.sheetrows import SheetReader, SheetRow
from api.batches.workbook import BROKEN, FAULTS, Workbook

_LOOKED_AT = 100
"""Rows that are read first, to see whether columns before the first name are part of the table."""

_BEFORE = "This row has something before the first column that the first row names."


def read_xlsx(file: BinaryIO, problems: Problems) -> Table:
    """The first visible sheet as a table; raises Unreadable."""
    try:
        workbook = Workbook(file)
        sheet = workbook.first_visible()
        reader = SheetReader(workbook)
        rows = reader.rows(workbook.text_of(sheet))
    except FAULTS:
        raise Unreadable(BROKEN) from None
    header = _first_row(rows)
    if header is None:
        others = f" {workbook.named_sheets()}" if len(workbook.sheets) > 1 else ""
        raise Unreadable(f"The first sheet of the workbook is empty.{others}")
    line, names = header
    sample = list(islice(rows, _LOOKED_AT))
    while not names[-1].strip():
        names.pop()
    first = next(place for place, name in enumerate(names) if name.strip())
    if any(any(cells[:first]) for _, cells, _ in sample):
        first = 0
    columns = read_columns(names[first:], line)
    return Table(columns.names, grouped(_rows(chain(sample, rows), first, columns, problems)), Dialect(mark=True))


def _first_row(rows: Iterator[SheetRow]) -> tuple[int, list[str]] | None:
    """The number and the cells of the first row with something in it; raises Unreadable when it is a problem."""
    for number, cells, trouble in rows:
        if trouble is not None:
            raise Unreadable(trouble, number)
        if any(map(str.strip, cells)):
            return number, cells
    return None


def _rows(rows: Iterator[SheetRow], first: int, columns: Columns, problems: Problems) -> Iterator[Record]:
    """The rows below the names, with their numbers in the sheet and their sizes."""
    width = len(columns.names)
    for line, found, unread in rows:
        record = found[first:] if first else found
        trouble = unread or (_BEFORE if first and any(found[:first]) else None)
        if len(record) < width:
            record += [""] * (width - len(record))
        elif len(record) > width:
            trouble = trouble or columns.trouble_with(record)
            del record[width:]
        joined = "".join(record)
        size = len(joined)
        if size > MAX_CELL_CHARS or "\0" in joined:
            trouble = trouble or _trouble_with_cells(record, size)
        if trouble is not None:
            problems.add("file", trouble, line)
            continue
        yield record, line, size


def _trouble_with_cells(record: list[str], size: int) -> str | None:
    if any("\0" in cell for cell in record):
        return "A cell contains the character U+0000, which cannot be stored."
    if max(map(len, record)) > MAX_CELL_CHARS:
        return f"A cell has more than {MAX_CELL_CHARS:,} characters."
    return f"This row has more than {MAX_RECORD_CHARS:,} characters." if size > MAX_RECORD_CHARS else None
