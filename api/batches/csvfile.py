"""Reading CSV as it really comes: any of three separators, quoted line ends, a byte-order mark, and mistakes.

A mistake costs its own row only: where a quote is not closed, reading goes on with the line after the one that
opened it. Nothing larger than a row is held, and a row is held to :data:`api.batches.records.MAX_RECORD_CHARS`.
"""

import csv
from collections import deque
from collections.abc import Iterator, Sequence
from io import BytesIO, StringIO, TextIOWrapper
from typing import BinaryIO

from api.batches.problems import Problems
from api.batches.records import (
    CHARS_AT_ONCE,
    MAX_CELL_CHARS,
    MAX_COLUMNS,
    MAX_RECORD_CHARS,
    RECORDS_AT_ONCE,
    Group,
    Table,
    Unreadable,
)
from api.bodies import shorten

SEPARATORS = (",", ";", "\t")
HEAD_BYTES = 1 << 16
_READ_BYTES = 1 << 17
_MARK = b"\xef\xbb\xbf"
_QUOTE_OPEN = "A quote that opens in this row is not closed."
_QUOTE_WITHIN = 'Something follows a closing quote; within a quoted cell, a quote is written "".'
_CELL_TOO_LONG = f"A cell has more than {MAX_CELL_CHARS:,} characters, or a quote that opens in this row is not closed."
_ROW_TOO_LONG = f"This row has more than {MAX_RECORD_CHARS:,} characters, or a quote that opens in it is not closed."


def read_csv(file: BinaryIO, problems: Problems, separator: str | None = None) -> Table:
    """A CSV file as a table, read while its groups are taken; raises Unreadable.

    Without a ``separator``, the one that divides the first row into the most cells is taken.
    """
    head = file.read(HEAD_BYTES)
    file.seek(3 if head.startswith(_MARK) else 0)
    told = _told_separator(head.removeprefix(_MARK))
    if told is not None:
        file.readline()
    separator = separator or told or sniff_separator(head.removeprefix(_MARK))
    reader = CsvReader(file, problems, separator, skipped=int(told is not None))
    columns = reader.header()
    return Table(columns, reader.groups(len(columns)))


def sniff_separator(head: bytes) -> str:
    """The separator that divides the first row of a file into the most cells."""
    text = head.decode("utf-8", "replace")

    def width(separator: str) -> int:
        try:
            return len(next(csv.reader(StringIO(text, newline=""), delimiter=separator, strict=True), []))
        except csv.Error:
            return 0

    return max(SEPARATORS, key=width)


class CsvReader:
    """Records of a CSV file with the lines where they begin."""

    def __init__(self, file: BinaryIO, problems: Problems, separator: str, *, skipped: int = 0) -> None:
        csv.field_size_limit(MAX_CELL_CHARS)
        self._text = TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
        self._problems = problems
        self._separator = separator
        self._held: list[str] = []  # the lines of the record under way
        self._again: deque[str] = deque()  # lines to be read once more
        self._line = skipped + 1  # where the record under way begins

    def header(self) -> Sequence[str]:
        """The names in the first row; raises Unreadable when they cannot be those of columns."""
        for cells, line in self.records():
            return named_columns(cells, line)
        raise Unreadable("The file is empty.")

    def groups(self, width: int) -> Iterator[Group]:
        """The records in groups; one with another number of cells is a problem and left out."""
        cells: list[list[str]] = []
        lines: list[int] = []
        chars = 0
        for record, line in self.records():
            if len(record) != width:
                self._problems.add("file", f"The first row names {width} columns; this row has {len(record)}.", line)
                continue
            cells.append(record)
            lines.append(line)
            chars += len(record[0]) if width == 1 else sum(map(len, record))
            if len(lines) == RECORDS_AT_ONCE or chars >= CHARS_AT_ONCE:
                yield Group(cells, lines)
                cells, lines, chars = [], [], 0
        if lines:
            yield Group(cells, lines)

    def records(self) -> Iterator[tuple[list[str], int]]:
        """The records, without those of an empty line; what is wrong with the others is noted."""
        held = self._held
        while True:
            try:
                for cells in csv.reader(self._lines(), delimiter=self._separator, strict=True):
                    line = self._line
                    self._line += len(held)
                    held.clear()
                    if cells:
                        yield cells, line
            except csv.Error as error:
                self._note(str(error))
            else:
                return

    def _lines(self) -> Iterator[str]:
        """The lines of the file, each looked at for what cannot be stored, and kept until its record is whole."""
        held, again, readline = self._held, self._again, self._text.readline
        chars = 0
        while True:
            fresh = not again
            line = readline(MAX_RECORD_CHARS + 1) if fresh else again.popleft()
            if not line:
                return
            chars = len(line) if not held else chars + len(line)
            held.append(line)
            if chars > MAX_RECORD_CHARS:
                if len(held) == 1:
                    raise Unreadable(_ROW_TOO_LONG, self._line)
                raise csv.Error(_ROW_TOO_LONG)
            if fresh and (not line.isascii() or "\0" in line):
                self._check(line)
            yield line

    def _check(self, line: str) -> None:
        number = self._line + len(self._held) - 1
        if "\0" in line:
            self._problems.add("file", "This line contains the character U+0000, which cannot be stored.", number)
        try:
            line.encode()
        except UnicodeEncodeError as error:
            byte = ord(line[error.start]) - 0xDC00
            message = f"The byte 0x{byte:02x} is not UTF-8; save the file as CSV UTF-8."
            self._problems.add("file", message, number)

    def _note(self, error: str) -> None:
        """Note what is wrong with the record under way, and go on with the line after its first."""
        if "field limit" in error:
            error = _CELL_TOO_LONG
        elif error == "unexpected end of data":
            error = _QUOTE_OPEN
        elif "expected after" in error:
            error = _QUOTE_WITHIN if len(self._held) == 1 else _QUOTE_OPEN
        self._problems.add("file", error, self._line)
        self._again.extendleft(reversed(self._held[1:]))
        self._held.clear()
        self._line += 1


def named_columns(cells: Sequence[str], line: int) -> Sequence[str]:
    """The columns that a first row names; raises Unreadable."""
    if len(cells) > MAX_COLUMNS:
        raise Unreadable(f"The file has {len(cells):,} columns; {MAX_COLUMNS:,} are possible.", line)
    names = [cell.strip() for cell in cells]
    if "" in names:
        raise Unreadable(f"Column {names.index('') + 1} has no name; the first row must name every column.", line)
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise Unreadable(f"Two columns are named {shorten(twice)!r}.", line)
    return names


def _told_separator(head: bytes) -> str | None:
    """The separator of a first line such as ``sep=;``, which Excel writes and obeys."""
    first = BytesIO(head).readline(16).rstrip(b"\r\n")
    return chr(first[4]) if len(first) == 5 and first.startswith(b"sep=") and first[4] < 128 else None
