"""Opening an uploaded file: which format it has, and a sentence for what it cannot be."""

from pathlib import PurePath
from typing import BinaryIO

from api.batches.csvfile import read_csv
from api.batches.jsonlfile import read_jsonl
from api.batches.problems import Problems
from api.batches.records import Table, Unreadable
from api.batches.xlsxfile import read_xlsx

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
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save it as .xlsx or as CSV UTF-8",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"GIF8": "an image",
    b"PAR1": "a Parquet file; save it as CSV or JSONL",
    b"SQLite format 3\x00": "a database",
    b"\x7fELF": "a program",
    b"\xff\xfe": "UTF-16 text; save it as CSV UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as CSV UTF-8",
}
_MARK = b"\xef\xbb\xbf"


def open_table(
    file: BinaryIO, filename: str, problems: Problems, *, form: str | None = None, separator: str | None = None
) -> Table:
    """The file as a table; raises Unreadable.

    ``form`` is one of :data:`api.batches.records.FORMATS`, told by content and name if None.
    """
    head = file.read(4096)
    file.seek(0)
    kind = _kind(head, filename, form)
    if kind == "xlsx":
        return read_xlsx(file, problems)
    if kind == "jsonl":
        return read_jsonl(file, problems)
    return read_csv(file, problems, separator)


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
        raise Unreadable("The file is no .xlsx workbook.")
    if _is_binary(head):
        raise Unreadable("The file is not text.")
    if form is not None:
        return form
    by_content = "jsonl" if head.removeprefix(_MARK).lstrip().startswith(b"{") else "csv"
    return _EXTENSIONS.get(extension, by_content)


def _is_binary(head: bytes) -> bool:
    """Whether so much of it is control characters that it can be no text, in which a U+0000 or two may stand."""
    controls = sum(byte < 9 or 13 < byte < 32 for byte in head)
    return controls * 10 > len(head)
