"""Reading a spreadsheet: the first sheet of an ``.xlsx`` workbook, its first row naming the columns.

The library holds a sheet whole, in a process whose memory is limited. What an archive says of its sizes is looked at
before it is opened, so that one that unpacks to a thousand times its size is refused at once.
"""

import datetime as dt
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import python_calamine

from api.batches.csvfile import named_columns
from api.batches.problems import Problems
from api.batches.records import MAX_CELL_CHARS, RECORDS_AT_ONCE, Group, Table, Unreadable

MAX_PARTS = 2000
MAX_UNPACKED_BYTES = 256 << 20
MAX_RATIO = 200
"""How many times its size an archive may unpack to; sheets of numbers come to fifty."""

MAX_CELLS = 8_000_000
_BROKEN = "This workbook cannot be read; save it anew as .xlsx, or as CSV UTF-8."


def read_xlsx(file: BinaryIO, problems: Problems) -> Table:
    """The first sheet as a table; raises Unreadable."""
    _check_archive(file)
    file.seek(0)
    try:
        workbook = python_calamine.CalamineWorkbook.from_filelike(file)
        sheet = workbook.get_sheet_by_index(0)
    except python_calamine.PasswordError:
        raise Unreadable("This workbook is locked with a password.") from None
    except (python_calamine.CalamineError, OSError, ValueError, IndexError):
        raise Unreadable(_BROKEN) from None
    if sheet.start is None or sheet.end is None:
        raise Unreadable("The first sheet of the workbook is empty.")
    if sheet.height * sheet.width > MAX_CELLS:
        raise Unreadable(f"The first sheet has more than {MAX_CELLS:,} cells; save it as CSV UTF-8.")
    rows = sheet.iter_rows()
    first = sheet.start[0] + 1
    columns = named_columns(_trimmed([_text(value) for value in next(rows)]), first)
    return Table(columns, _groups(rows, len(columns), first + 1, problems))


def _check_archive(file: BinaryIO) -> None:
    try:
        parts = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise Unreadable(_BROKEN) from None
    packed, unpacked = file.seek(0, 2), sum(part.file_size for part in parts)
    if len(parts) > MAX_PARTS or unpacked > MAX_UNPACKED_BYTES or unpacked > MAX_RATIO * packed:
        raise Unreadable(f"This workbook unpacks to {unpacked >> 20:,} MiB; save it as CSV UTF-8.")


def _groups(rows: Iterator[Sequence[Any]], width: int, line: int, problems: Problems) -> Iterator[Group]:
    """Rows of the sheet in groups; its own rows are the lines. Any: the cells' values."""
    cells: list[list[str]] = []
    lines: list[int] = []
    for line_number, row in enumerate(rows, line):
        record = [_text(value) for value in row]
        if any(record[width:]):
            problems.add("file", f"The first row names {width} columns; this row has more.", line_number)
        elif any("\0" in cell or len(cell) > MAX_CELL_CHARS for cell in record):
            problems.add("file", "A cell is too long, or contains the character U+0000.", line_number)
        else:
            cells.append(record[:width])
            lines.append(line_number)
        if len(lines) == RECORDS_AT_ONCE:
            yield Group(cells, lines)
            cells, lines = [], []
    if lines:
        yield Group(cells, lines)


def _trimmed(cells: list[str]) -> list[str]:
    while cells and not cells[-1].strip():
        cells.pop()
    return cells


def _text(value: Any) -> str:  # Any: what the library makes of a cell
    """A cell's text as a spreadsheet's own CSV would have it: whole numbers without a point, times in ISO 8601."""
    match value:
        case str():
            return value
        case bool():
            return "TRUE" if value else "FALSE"
        case float() if value.is_integer() and abs(value) < 1e15:
            return str(int(value))
        case dt.datetime() if value.time() == dt.time():
            return value.date().isoformat()
        case dt.datetime() | dt.date() | dt.time():
            return value.isoformat()
    return str(value)
