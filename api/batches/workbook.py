"""A workbook as an archive of XML parts: which sheet is read, its shared texts, and how its numbers are shown.

Source: ECMA-376, transitional and strict. The sizes that an archive declares are checked before any part is unpacked,
so that a zip bomb is refused at once. No part may declare entities.
"""

import posixpath
import xml.parsers.expat
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from api.batches.numberformat import BUILT_IN
from api.batches.records import Unreadable
from api.batches.sheetxml import pieces_of, texts_of
from api.bodies import shorten

MAX_PARTS = 2000
MAX_UNPACKED_BYTES = 256 << 20
MAX_RATIO = 200
"""The most that an archive may unpack to, as a multiple of its own size."""

MAX_FORMATS = 100_000
"""The most cell formats of a workbook; Excel has at most 65,490."""

BROKEN = "This workbook cannot be read; save it again as .xlsx, or as CSV UTF-8."
FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    xml.parsers.expat.ExpatError,
    NotImplementedError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    RuntimeError,  # a part that is encrypted
)
"""What the libraries raise for a broken archive or part."""

_KINDS = {
    "xl/workbook.bin": "an .xlsb workbook; save it as .xlsx or as CSV UTF-8",
    "content.xml": "an OpenDocument file; save it as .xlsx or as CSV UTF-8",
    "word/document.xml": "a Word document",
    "ppt/presentation.xml": "a presentation",
    "index/document.iwa": "a Numbers document; export it as .xlsx or CSV",
}
_MANY_NAMES = 10
_LONGEST_PATH = 200
_PIECE_BYTES = 1 << 16

Attributes = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Sheet:
    """A sheet of the workbook: its name, its part in the archive, and whether it is visible."""

    name: str
    part: str
    visible: bool


class Workbook:
    """A workbook that is open. Raises Unreadable for an archive that is not a workbook, and FAULTS for a broken one."""

    def __init__(self, file: BinaryIO) -> None:
        self._archive, self._parts = _opened(file)
        main = self._related("", "officeDocument")
        if not main or next(iter(main.values())).lower().endswith(".bin"):
            raise Unreadable(f"The file is {_kind(self._parts)}.")
        self._main = next(iter(main.values()))
        self.date1904 = False
        self.calculates = False
        """Whether a spreadsheet computes its formulas when it opens it: the stored results may be stand-ins."""
        self.sheets = self._read_sheets()

    def first_visible(self) -> Sheet:
        """The first sheet that is visible; raises Unreadable when none is."""
        for sheet in self.sheets:
            if sheet.visible:
                return sheet
        raise Unreadable(f"No sheet of the workbook is visible. {self.named_sheets()}")

    def named_sheets(self) -> str:
        """A sentence that names the sheets."""
        names = [f"{shorten(s.name)!r}{'' if s.visible else ' (hidden)'}" for s in self.sheets[:_MANY_NAMES]]
        more = len(self.sheets) - len(names)
        return f"Its sheets are {', '.join(names)}{f' and {more} more' if more > 0 else ''}."

    def text_of(self, sheet: Sheet) -> Iterator[str]:
        """The sheet's XML in pieces."""
        with self._archive.open(self._parts[sheet.part.lower()]) as stream:
            yield from pieces_of(stream)

    def shared_texts(self) -> Sequence[str]:
        """The texts that cells refer to by number."""
        parts = self._related(self._main, "sharedStrings")
        for part in parts.values():
            if part.lower() in self._parts:
                with self._archive.open(self._parts[part.lower()]) as stream:
                    return list(texts_of(pieces_of(stream)))
        return ()

    def number_formats(self) -> Sequence[str]:
        """The number format of each cell format (``cellXfs``), by its place."""
        codes: dict[int, str] = dict(BUILT_IN)
        found: list[int] = []
        for part in self._related(self._main, "styles").values():
            for path, attributes in self._elements(part):
                if path.endswith("/numFmts/numFmt"):
                    codes[int(attributes["numFmtId"])] = attributes.get("formatCode", "")
                elif path.endswith("/cellXfs/xf"):
                    found.append(int(attributes.get("numFmtId", "0")))
                if len(found) > MAX_FORMATS or len(codes) > MAX_FORMATS:
                    raise ValueError("too many formats")
        return [codes.get(number, "General") for number in found]

    def _read_sheets(self) -> Sequence[Sheet]:
        parts = self._related(self._main, "worksheet")
        found: list[Sheet] = []
        for path, attributes in self._elements(self._main):
            if path == "/workbook/workbookPr":
                self.date1904 = attributes.get("date1904") in ("1", "true")
            elif path == "/workbook/calcPr":
                self.calculates = attributes.get("fullCalcOnLoad") in ("1", "true")
            elif path == "/workbook/sheets/sheet" and (part := parts.get(attributes.get("id", ""))):
                visible = attributes.get("state", "visible") == "visible"
                found.append(Sheet(attributes.get("name", ""), part, visible))
        if not found:
            raise Unreadable("The workbook has no sheet with cells.")
        return found

    def _related(self, part: str, kind: str) -> dict[str, str]:
        """The parts to which a part has relationships of a kind, by the ids of these."""
        folder, name = posixpath.split(part)
        relations = posixpath.join(folder, "_rels", f"{name}.rels")
        if relations.lower() not in self._parts:
            return {}
        found: dict[str, str] = {}
        for path, attributes in self._elements(relations):
            if path.endswith("/Relationship") and attributes.get("Type", "").endswith(f"/{kind}"):
                target = attributes.get("Target", "").strip().replace("\\", "/")
                found[attributes.get("Id", "")] = posixpath.normpath(posixpath.join("/", folder, target)).lstrip("/")
        return found

    def _elements(self, part: str) -> Iterator[tuple[str, Attributes]]:
        """The elements of a small part as they begin: their paths and their attributes, without namespaces."""
        parser = xml.parsers.expat.ParserCreate(namespace_separator=" ")
        started: list[tuple[str, Attributes]] = []
        path: list[str] = [""]

        def start(name: str, attributes: dict[str, str]) -> None:
            path.append(f"{path[-1]}/{name.rpartition(' ')[2]}"[-_LONGEST_PATH:])
            started.append((path[-1], {key.rpartition(" ")[2]: value for key, value in attributes.items()}))

        def doctype(*_: object) -> None:
            raise ValueError("a part has a DOCTYPE")

        parser.StartElementHandler = start
        parser.EndElementHandler = lambda _: path.pop()
        parser.StartDoctypeDeclHandler = doctype
        with self._archive.open(self._parts[part.lower()]) as stream:
            while piece := stream.read(_PIECE_BYTES):
                parser.Parse(piece, False)
                yield from started
                started.clear()
        parser.Parse(b"", True)


def _opened(file: BinaryIO) -> tuple[zipfile.ZipFile, Mapping[str, zipfile.ZipInfo]]:
    archive = zipfile.ZipFile(file)
    parts = archive.infolist()
    packed, unpacked = file.seek(0, 2), sum(part.file_size for part in parts)
    if len(parts) > MAX_PARTS or unpacked > MAX_UNPACKED_BYTES or unpacked > MAX_RATIO * packed:
        raise Unreadable(f"This workbook unpacks to {unpacked >> 20:,} MiB; save it as CSV UTF-8.")
    return archive, {part.filename.replace("\\", "/").lstrip("/").lower(): part for part in parts}


def _kind(parts: Mapping[str, object]) -> str:
    """What kind of file an archive without a workbook is."""
    for part, kind in _KINDS.items():
        if part in parts:
            return kind
    return "a zip archive without a workbook; unpack it first"
