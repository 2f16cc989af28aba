"""Opening an uploaded file: telling its format, and refusing other files with a sentence that names their kind."""

import re
from pathlib import PurePath
from typing import BinaryIO

from api.batches.csvfile import read_csv
from api.batches.jsonlfile import read_jsonl
from api.batches.problems import Problems
from api.batches.records import Table, Unreadable
from api.batches.xlsxfile import read_xlsx
from models.textfiles import UTF16_MARKS, marks_of

_ZIP = b"PK\x03\x04"
_EXTENSIONS = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
_FOREIGN = {
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"BZh": "a bzip2 archive; unpack it first",
    b"\xfd7zXZ\x00": "an xz archive; unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd archive; unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it first",
    b"Rar!": "a rar archive; unpack it first",
    b"%PDF": "a PDF document",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"GIF8": "an image",
    b"PAR1": "a Parquet file; save it as CSV or JSONL",
    b"SQLite format 3\x00": "a database",
    b"\x7fELF": "a program",
}
_COMPOUND = b"\xd0\xcf\x11\xe0"
_LOCKED = "EncryptedPackage".encode("utf-16-le")
_JSON = re.compile(rb"\s*(?:\[\s*)?\{")
"""How a file of JSON begins: with an object, or with an array, which the reader of JSONL refuses."""

_MARKUP = {b"<html": "an HTML page", b"<table": "an HTML page", b"<!doctype html": "an HTML page", b"<?xml": "XML"}


def open_table(
    file: BinaryIO,
    filename: str,
    problems: Problems,
    *,
    form: str | None = None,
    separator: str | None = None,
    encoding: str | None = None,
) -> Table:
    """The file as a table; raises Unreadable.

    ``form`` is one of :data:`api.batches.records.FORMATS`, or None to tell it by content and name.
    """
    head = file.read(4096)
    if head.startswith(_COMPOUND):
        raise Unreadable(_old_workbook(file))
    file.seek(0)
    kind = _kind(head, filename, form)
    if kind == "xlsx":
        return read_xlsx(file, problems)
    if kind == "jsonl":
        return read_jsonl(file, problems)
    return read_csv(file, problems, separator, encoding)


def _kind(head: bytes, filename: str, form: str | None) -> str:
    if not head:
        raise Unreadable("The file is empty.")
    foreign = next((name for magic, name in _FOREIGN.items() if head.startswith(magic)), None)
    if foreign is not None:
        raise Unreadable(f"The file is {foreign}.")
    extension = PurePath(filename.replace("\\", "/")).suffix.lower()
    if head.startswith(_ZIP):
        if form in ("csv", "jsonl") or (form is None and extension in _EXTENSIONS):
            raise Unreadable("The file is a zip archive or an .xlsx workbook; name it .xlsx, or unpack it first.")
        return "xlsx"
    if form == "xlsx" or (form is None and extension in (".xlsx", ".xlsm")):
        raise Unreadable(f"The file is not an .xlsx workbook{_but_text(head)}.")
    if head[:2] in UTF16_MARKS:
        return _kind_of_utf16(head, extension, form)
    _check_text(head)
    if form is not None:
        return form
    by_content = "jsonl" if _JSON.match(head, marks_of(head)) else "csv"
    return _EXTENSIONS.get(extension, by_content)


def _kind_of_utf16(head: bytes, extension: str, form: str | None) -> str:
    text = head[: len(head) // 2 * 2].decode("utf-16", "ignore").lstrip()
    if form == "jsonl" or (form is None and (_EXTENSIONS.get(extension) == "jsonl" or text.startswith("{"))):
        raise Unreadable("The file is UTF-16 text; JSONL is UTF-8: save it as that.")
    return "csv"


def _check_text(head: bytes) -> None:
    """Refuse a file that is not text, or is text of a kind that cannot be a table."""
    if _is_unmarked_utf16(head):
        raise Unreadable("The file is UTF-16 text without a byte-order mark; save it as CSV UTF-8.")
    if _is_binary(head):
        raise Unreadable("The file is not text.")
    _check_no_markup(head)


def _old_workbook(file: BinaryIO) -> str:
    """What a compound file is: a workbook with a password has an encrypted package in it."""
    before = b""
    while piece := file.read(1 << 20):
        if _LOCKED in before + piece:
            return "This workbook is locked with a password."
        before = piece[-len(_LOCKED) :]
    return "The file is an old Excel workbook (.xls); save it as .xlsx or as CSV UTF-8."


def _but_text(head: bytes) -> str:
    return "" if _is_binary(head) else ", but text: name it .csv or .jsonl, or say so by format"


def _is_unmarked_utf16(head: bytes) -> bool:
    """Whether every other byte is zero, as in UTF-16 of European languages."""
    return len(head) > 7 and max(head[0::2].count(0), head[1::2].count(0)) * 5 > len(head) // 2 * 4


def _check_no_markup(head: bytes) -> None:
    """Refuse a web page or XML, which old programs give names such as .xls and .csv."""
    text = head[marks_of(head) :].lstrip()[:20].lower()
    for begin, kind in _MARKUP.items():
        if text.startswith(begin):
            advice = "open it in a spreadsheet program and save it as .xlsx or as CSV UTF-8"
            raise Unreadable(f"The file is {kind}; {advice}.")


def _is_binary(head: bytes) -> bool:
    """Whether more than a tenth of it is control characters. Text may have a few, such as a U+0000."""
    controls = sum(byte < 9 or 13 < byte < 32 for byte in head)
    return controls * 10 > len(head)
