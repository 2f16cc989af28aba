"""Reading CSV as it really comes: any of four separators, quoted line ends, a byte-order mark, and mistakes.

UTF-8 is read, UTF-16 with its mark, and the encoding that the form names: the bytes of a file tell no other encoding.
A mistake costs its own row only: where a quote is not closed, reading goes on with the line after the one that
opened it. Nothing larger than a row is held, and a row has at most :data:`api.batches.records.MAX_RECORD_CHARS`.
"""

import csv
import re
from collections import deque
from collections.abc import Iterator
from io import StringIO, TextIOWrapper
from typing import BinaryIO

from api.batches.columns import Columns, read_columns
from api.batches.problems import Problems
from api.batches.records import (
    MAX_CELL_CHARS,
    MAX_COLUMNS,
    MAX_RECORD_CHARS,
    Dialect,
    Record,
    Table,
    Unreadable,
    grouped,
)
from models.textfiles import UTF16_MARKS, marks_of

SEPARATORS = (",", ";", "\t", "|")
_BLANKS = " \xa0" + "".join(SEPARATORS)
HEAD_BYTES = 1 << 16
_READ_BYTES = 1 << 17
_NOT_UTF8 = (
    "The byte 0x{:02x} is not UTF-8, here and perhaps in further lines; save the file as CSV UTF-8, or send its"
    " encoding, such as encoding=windows-1252."
)
_TOLD = re.compile(r'"?sep=([\x01-\t\x0b\x0c\x0e-\x7f])(?:\1{0,9}"?|"\1{0,9})(?=[\r\n]|\Z)', re.IGNORECASE)
"""A first line such as ``sep=;``, which Excel obeys. Some programs quote it, or end it with the separators of empty
cells."""

_QUOTE_OPEN = "A quote that opens in this row is not closed."
_QUOTE_WITHIN = 'Something follows a closing quote; within a quoted cell, a quote is written "".'
_CELL_TOO_LONG = f"A cell has more than {MAX_CELL_CHARS:,} characters, or a quote that opens in this row is not closed."
_ROW_TOO_LONG = f"This row has more than {MAX_RECORD_CHARS:,} characters, or a quote that opens in it is not closed."


def read_csv(file: BinaryIO, problems: Problems, separator: str | None = None, encoding: str | None = None) -> Table:
    """A CSV file as a table, read while its groups are taken; raises Unreadable.

    Without a ``separator``, the first line says it (``sep=;``), or it is the one that divides the first row into the
    most cells. A mark at the beginning tells the encoding, whatever ``encoding`` says; without either it is UTF-8.
    """
    head = file.read(HEAD_BYTES)
    utf16 = UTF16_MARKS.get(head[:2])
    marks = 2 if utf16 else marks_of(head)
    encoding = utf16 or ("utf-8" if marks else encoding or "utf-8")
    text = head[marks:].decode(encoding, "replace")
    told = _TOLD.match(text)
    separator = separator or (told[1] if told else sniff_separator(text))
    file.seek(marks)
    reader = CsvReader(file, problems, separator, encoding)
    if told is not None:
        reader.skip_line()
    columns = reader.header()
    dialect = _dialect(separator, reader.line_end, encoding, marked=marks > 0)
    return Table(columns.names, grouped(reader.rows(columns)), dialect)


def sniff_separator(text: str) -> str:
    """The separator that divides the first row of a text into the most cells."""

    def width(separator: str) -> int:
        try:
            rows = csv.reader(StringIO(text, newline=""), delimiter=separator, strict=True)
            return len(next((row for row in rows if any(cell.strip(_BLANKS) for cell in row)), []))
        except csv.Error:
            return 0

    return max(SEPARATORS, key=width)


def _dialect(separator: str, line_end: str, encoding: str, *, marked: bool) -> Dialect:
    """How results are written: as the file is; UTF-8 with a mark if its encoding may lack a character of an answer."""
    if encoding.startswith("utf-"):
        return Dialect(separator, line_end, marked, encoding)
    return Dialect(separator, line_end, mark=True)


class CsvReader:
    """Records of a CSV file with the lines where they begin."""

    def __init__(self, file: BinaryIO, problems: Problems, separator: str, encoding: str) -> None:
        csv.field_size_limit(MAX_CELL_CHARS)
        errors = "strict" if encoding.startswith("utf-16") else "surrogateescape"
        self._text = TextIOWrapper(file, encoding, errors, newline="")
        self._encoding = encoding
        self._undecodable = 0
        self.line_end = ""
        """The line end of the first row."""
        self._problems = problems
        self._separator = separator
        self._held: list[str] = []  # the lines of the record under way
        self._again: deque[str] = deque()  # lines to be read once more
        self._line = 1  # where the record under way begins

    def skip_line(self) -> None:
        """Leave a line out."""
        self._text.readline(MAX_RECORD_CHARS)
        self._line += 1

    def header(self) -> Columns:
        """The names in the first row with something in it; raises Unreadable when they cannot be those of columns."""
        for cells, line in self.records():
            if len(cells) > MAX_COLUMNS or any(map(str.strip, cells)):
                return read_columns(cells, line)
        raise Unreadable("The file is empty.")

    def rows(self, columns: Columns) -> Iterator[Record]:
        """The records that have the columns, with their lines and sizes; any other is noted as a problem."""
        width = len(columns.names)
        for record, line in self.records():
            if len(record) != width:
                if len(record) == 1 and not record[0].strip():
                    continue  # a line of blanks
                if (trouble := columns.trouble_with(record)) is not None:
                    self._problems.add("file", trouble, line)
                    continue
                del record[width:]
            yield record, line, len(record[0]) if width == 1 else sum(map(len, record))

    def records(self) -> Iterator[tuple[list[str], int]]:
        """The records, without those of an empty line. A mistake is noted as a problem."""
        held = self._held
        while True:
            try:
                for cells in csv.reader(self._lines(), delimiter=self._separator, strict=True):
                    line = self._line
                    self._line += len(held)
                    if not self.line_end:
                        self.line_end = _line_end(held[-1])
                    held.clear()
                    if cells:
                        yield cells, line
            except csv.Error as error:
                self._note(str(error))
            else:
                return

    def _lines(self) -> Iterator[str]:
        """The lines of the file, each checked for what cannot be stored, and held until its record is whole."""
        held, again, readline = self._held, self._again, self._text.readline
        chars = 0
        while True:
            fresh = not again
            try:
                line = readline(MAX_RECORD_CHARS + 1) if fresh else again.popleft()
            except UnicodeError:
                raise Unreadable(f"The file is not {self._encoding.upper()} throughout.", self._line) from None
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
            self._undecodable += 1
            if self._undecodable == 1:
                byte = ord(line[error.start]) - 0xDC00
                told = f"The byte 0x{byte:02x} is not {self._encoding}." if self._encoding != "utf-8" else None
                self._problems.add("file", told or _NOT_UTF8.format(byte), number)

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


def _line_end(line: str) -> str:
    return "\r\n" if line.endswith("\r\n") else line[-1:] if line[-1:] in ("\r", "\n") else "\r\n"
