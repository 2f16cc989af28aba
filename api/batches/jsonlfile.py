"""Reading JSONL: an object on each line, whose keys are the columns.

A string is its cell as it is. Null and a missing key are an empty cell. Any other value is its JSON text, and its
numbers keep the digits of the file: 1.10 stays 1.10, and 30 digits stay 30.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import orjson

from api.batches.problems import Problems
from api.batches.records import (
    MAX_CELL_CHARS,
    MAX_COLUMNS,
    MAX_RECORD_CHARS,
    Record,
    Table,
    Unreadable,
    grouped,
)
from api.bodies import shorten
from models.textfiles import marks_of

_INEXACT = re.compile(rb"(?<![\w.\"])-?(?:0(?![\d.eE])(?<=-0)|\d+(?:[.eE]|\d{18}))")
"""A number that orjson may not give back digit for digit. Something like it within a string is found too."""

_NOT_JSONL = "This is not JSONL: each line must be one whole JSON object."
_OPENAI = {"custom_id", "method", "url", "body"}


def read_jsonl(file: BinaryIO, problems: Problems) -> Table:
    """A JSONL file as a table with all the keys that its objects have; raises Unreadable.

    The file is read twice: first for its keys, then for its rows.
    """
    columns = _keys(file)
    if not columns:
        file.seek(0)
        first = next((number for number, _ in _lines(file)), None)
        raise Unreadable("The file is empty." if first is None else _NOT_JSONL, first)
    file.seek(0)
    return Table(columns, grouped(_rows(file, columns, problems)))


def looks_like_openai(columns: Sequence[str]) -> bool:
    """Whether the objects are requests as OpenAI's Batch API has them."""
    return set(columns) == _OPENAI


def _keys(file: BinaryIO) -> Sequence[str]:
    keys: dict[str, None] = {}
    for number, line in _lines(file):
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError:
            if line.lstrip().startswith(b"["):
                raise Unreadable(_NOT_JSONL, number) from None
            continue
        if isinstance(found, dict) and not found.keys() <= keys.keys():
            keys.update(dict.fromkeys(found))
            if len(keys) > MAX_COLUMNS:
                raise Unreadable(f"The objects have more than {MAX_COLUMNS:,} different keys.", number)
            for key in found:
                if not key or "\0" in key:
                    raise Unreadable("A key is empty or contains the character U+0000.", number)
    return list(keys)


def _rows(file: BinaryIO, columns: Sequence[str], problems: Problems) -> Iterator[Record]:
    for number, line in _lines(file):
        if (cells := _checked_cells(line, columns, problems, number)) is not None:
            yield cells, number, len(line)


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines with something on them; raises Unreadable at one that is too long to be held."""
    number = 0
    while line := file.readline(MAX_RECORD_CHARS + 1):
        number += 1
        if len(line) > MAX_RECORD_CHARS:
            raise Unreadable(f"This line has more than {MAX_RECORD_CHARS:,} bytes.", number)
        if number == 1:
            line = line[marks_of(line) :]
        if not line.isspace():
            yield number, line


def _checked_cells(line: bytes, columns: Sequence[str], problems: Problems, number: int) -> list[str] | None:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        problems.add("file", f"This line is not JSON: {shorten(str(error), 200)}.", number)
        return None
    if not isinstance(found, dict):
        problems.add("file", "This line is not a JSON object.", number)
        return None
    try:
        cells = _cells_of(found, line, columns)
    except (RecursionError, orjson.JSONEncodeError):
        problems.add("file", "A value of this line has too many levels.", number)
        return None
    if b"\\u0000" in line and any("\0" in cell for cell in cells):
        problems.add("file", "This line contains the character U+0000, which cannot be stored.", number)
        return None
    if len(line) > MAX_CELL_CHARS and max(map(len, cells)) > MAX_CELL_CHARS:
        problems.add("file", f"A value has more than {MAX_CELL_CHARS:,} characters.", number)
        return None
    return cells


def _cells_of(found: dict[str, Any], line: bytes, columns: Sequence[str]) -> list[str]:  # Any: JSON
    """The cells of an object; raises RecursionError or JSONEncodeError for too many levels."""
    unsure: Any = None  # a value that needs a second look
    cells = [
        value
        if value.__class__ is str
        else str(value)
        if value.__class__ is int and value
        else ""
        if value is None
        else unsure
        for value in map(found.get, columns)
    ]
    return _careful_cells(found, line, columns) if unsure in cells else cells


def _careful_cells(found: dict[str, Any], line: bytes, columns: Sequence[str]) -> list[str]:  # Any: JSON
    """The cells of an object that has other values than strings, null, and whole numbers but 0."""
    unsure = (value for value in found.values() if value.__class__ is not str)
    if any(_may_differ(value, line) for value in unsure):
        found = json.loads(line, parse_float=_digits, parse_int=_digits)
    return [value if value.__class__ is str else _text(value) for value in map(found.get, columns)]


def _may_differ(value: Any, line: bytes) -> bool:  # Any: JSON
    """Whether a value, which is not a string, may have lost digits that its line has."""
    if isinstance(value, dict | list):
        return _INEXACT.search(line) is not None
    return isinstance(value, float) or (value == 0 and b"-0" in line)


def _digits(text: str) -> orjson.Fragment:
    """A number as it is written."""
    return orjson.Fragment(text)


def _text(value: Any) -> str:  # Any: JSON
    return "" if value is None else orjson.dumps(value).decode()
