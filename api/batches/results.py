"""The results of a batch as streams: OpenAI's output and error files, our JSONL, and CSV.

Postgres writes the lines, a page at a time, each page a statement of its own: memory stays flat whatever a batch has,
and a slow reader holds nothing.
"""

import csv
import sys
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Literal
from uuid import UUID

import orjson
from sqlalchemy import RowMapping

from api.batches.records import Dialect
from api.csvcells import harmless
from models.database import Read
from models.results import SELECT_FINISHING_ORDER, SELECT_TOTAL, page

PAGE_ROWS = 1000
PAGE_BYTES = 2 << 20
OWN_COLUMNS = ("output", "error", "model", "input_tokens", "output_tokens", "cost_usd")
_LINE_END = "\r\n"
_MARK = "\ufeff"

Order = Literal["input", "finished"]
Pages = AsyncIterator[Sequence[str]]


async def openai_lines(read: Read, batch_id: UUID, *, failed: bool) -> AsyncIterator[bytes]:
    """The lines of a batch's output file, or of its error file (``failed``)."""
    async for lines in _pages(read, batch_id, "openai", "failed" if failed else "completed", "input"):
        yield _joined(lines)


async def jsonl_results(read: Read, batch_id: UUID, order: Order) -> AsyncIterator[bytes]:
    """Every row that has a result, a JSON object each."""
    async for lines in _pages(read, batch_id, "jsonl", "all", order):
        yield _joined(lines)


async def csv_results(read: Read, sheet: RowMapping, order: Order, *, raw: bool) -> AsyncIterator[bytes]:
    """Every row that has a result: the input's columns, then ours, written as the input was.

    Cells that a spreadsheet would execute get an apostrophe in front, unless ``raw``.
    """
    columns = sheet["columns"] if sheet["columns"] is not None else ["custom_id"]
    dialect = dialect_of(sheet)
    write = _writer((lambda cell: cell) if raw else harmless, dialect)
    if dialect.mark:
        yield _MARK.encode(dialect.encoding)
    yield write([[*columns, *(_distinct(name, columns) for name in OWN_COLUMNS)]])
    async for lines in _pages(read, sheet["id"], "csv", "all", order):
        documents = map(orjson.loads, lines)
        yield write([[*cells, *own] for cells, *own in documents])


def dialect_of(sheet: RowMapping) -> Dialect:
    """How a batch's results are written as CSV: as its file was."""
    return Dialect(**(sheet["dialect"] or {}))


def _writer(convert: Callable[[str], str], dialect: Dialect) -> Callable[[Sequence[Sequence[Any]]], bytes]:  # Any: JSON
    def write(rows: Sequence[Sequence[Any]]) -> bytes:  # Any: JSON
        lines: list[str] = []
        writer = csv.writer(_Lines(lines), delimiter=dialect.separator)
        writer.writerows([convert(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
        if dialect.line_end != _LINE_END:
            lines = [line.removesuffix(_LINE_END) + dialect.line_end for line in lines]
        return "".join(lines).encode(dialect.encoding)

    return write


class _Lines:
    """A list of lines, to which csv.writer writes one at a time.

    The writer ends lines with CR and LF, whatever the file has: so it quotes cells with either.
    """

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append


def _distinct(name: str, columns: Sequence[str]) -> str:
    while name in columns:
        name = f"headrace_{name}"
    return name


def _joined(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _pages(read: Read, batch_id: UUID, form: str, which: str, order: Order) -> Pages:
    if order == "finished":
        return _pages_as_finished(read, batch_id, form, which)
    return _pages_by_number(read, batch_id, form, which)


async def _pages_by_number(read: Read, batch_id: UUID, form: str, which: str) -> Pages:
    statement = page(form, which, chosen=False)
    sheets = await read(SELECT_TOTAL, {"id": batch_id})
    total = sheets[0]["total"] if sheets else 0
    after, span = 0, PAGE_ROWS
    while after < total:
        last = after + span
        params = {"batch_id": batch_id, "after": after, "last": last, "bytes": PAGE_BYTES}
        rows = await read(statement, params)
        given = [row for row in rows if row["line"] is not None]
        after = last if len(given) == len(rows) else given[-1]["number"]
        span = min(PAGE_ROWS, span * 2) if len(given) == len(rows) else max(1, len(given))
        if given:
            yield [row["line"] for row in given]


async def _pages_as_finished(read: Read, batch_id: UUID, form: str, which: str) -> Pages:
    statement = page(form, which, chosen=True)
    orders = await read(SELECT_FINISHING_ORDER, {"batch_id": batch_id})
    numbers = array("i", orders[0]["numbers"] if orders else b"")
    if sys.byteorder == "little":
        numbers.byteswap()
    start, span = 0, PAGE_ROWS
    while start < len(numbers):
        chosen = numbers[start : start + span].tolist()
        rows = await read(statement, {"batch_id": batch_id, "numbers": chosen, "bytes": PAGE_BYTES})
        given = [row for row in rows if row["line"] is not None]
        whole = len(given) == len(rows)
        start = start + len(chosen) if whole else start + chosen.index(given[-1]["number"]) + 1
        span = min(PAGE_ROWS, span * 2) if whole else max(1, len(given))
        if given:
            yield [row["line"] for row in given]
