"""The XML of sheets and of shared texts, read a piece at a time.

Rows and texts are found by their tags, since a parser would call Python for each element of each cell. The parts of a
workbook use little of XML; comments and CDATA, which may hold tags, are taken out first.
"""

import codecs
import re
from collections.abc import Iterator
from typing import IO
from xml.sax.saxutils import escape

from models.textfiles import UTF16_MARKS

MAX_PIECE_CHARS = 32 << 20
"""The longest row, text or comment that is held, as XML."""

_READ_BYTES = 1 << 18
_DECLARED = re.compile(rb'^<\?xml[^>]*encoding=["\']([\w.-]+)')
_ENCODINGS = ("utf-8", "ascii", "iso8859-1", "cp1252")
_SPECIAL = re.compile(r"<!--.*?-->|<!\[CDATA\[(.*?)\]\]>", re.DOTALL)
_ENTITY = re.compile(r"&(?:#(\d{1,7})|#x([0-9a-fA-F]{1,6})|(\w+));?")
_ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}
_ESCAPED = re.compile(r"_x([0-9A-Fa-f]{4})_")
_TEXT = re.compile(r"<t(?:\s[^>]*)?>([^<]*)</t\s*>")
_PHONETIC = re.compile(r"<rPh\b.*?</rPh\s*>", re.DOTALL)
_PREFIX = re.compile(r"<([\w.-]+:)?(?:worksheet|sst)\b")


def pieces_of(stream: IO[bytes]) -> Iterator[str]:
    """The text of a part in pieces; raises ValueError for an encoding that a workbook may not have."""
    head = stream.read(_READ_BYTES)
    decoder = codecs.getincrementaldecoder(_encoding(head))()
    piece = head
    while piece:
        yield decoder.decode(piece)
        piece = stream.read(_READ_BYTES)
    yield decoder.decode(b"", True)


def elements_of(pieces: Iterator[str], element: str, end: str) -> Iterator[str]:
    """The text before each end of an ``element``, up to the end of ``end``, without namespace prefixes.

    Raises ValueError where ``end`` does not come, and for a DOCTYPE.
    """
    held = ""
    prefix: str | None = None
    closing = last = ""
    empty = re.compile("")
    for piece in pieces:
        held += piece
        if "<!" in held:
            held, rest = _without_specials(held)
        else:
            rest = ""
        if prefix is None:
            if (found := _PREFIX.search(held)) is None:
                _check_length(held, rest)
                held += rest
                continue
            prefix = found[1] or ""
            closing, last = f"</{prefix}{element}>", f"</{prefix}{end}"
            empty = re.compile(rf"<{prefix}{end}(?:\s[^<>]*)?/>")
        *whole, held = held.split(closing)
        for text in whole:
            yield text.replace(f"<{prefix}", "<").replace(f"</{prefix}", "</") if prefix else text
        if last in held or empty.search(held):
            return
        held += rest
        _check_length(held)
    raise ValueError(f"no end of {end}")


def texts_of(pieces: Iterator[str]) -> Iterator[str]:
    """The shared texts of a workbook, in their order."""
    for item in elements_of(pieces, "si", "sst"):
        if item.startswith("<si><t>") and item.count("<") == 3:
            text = item[7:-4]
            yield unescaped(text) if "&" in text or "_x" in text or "\r" in text else text
            continue
        start = item.rfind("<si")
        for _ in range(item.count("<si/>", 0, start)):
            yield ""
        yield plain_text(item[start:])


def plain_text(markup: str) -> str:
    """The text of a shared or inline text: its runs together, without how they are pronounced."""
    if "<rPh" in markup:
        markup = _PHONETIC.sub("", markup)
    found = _TEXT.findall(markup)
    text = found[0] if len(found) == 1 else "".join(found)
    return unescaped(text) if "&" in text or "_x" in text or "\r" in text else text


def unescaped(text: str) -> str:
    """A text with the escapes of XML and of workbooks (``_x000D_``) undone; raises ValueError for an unknown entity."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "&" in text:
        text = _ENTITY.sub(_entity, text)
    if "_x" in text:
        text = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)
        if not text.isascii():  # halves of a character may have been escaped apart
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _entity(found: re.Match[str]) -> str:
    if found[3] is not None:
        if found[3] not in _ENTITIES:
            raise ValueError(f"unknown entity {found[3][:20]}")
        return _ENTITIES[found[3]]
    return chr(int(found[1]) if found[1] is not None else int(found[2], 16))


def _encoding(head: bytes) -> str:
    if head[:2] in UTF16_MARKS:
        return "utf-16"
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    declared = _DECLARED.match(head)
    name = "utf-8" if declared is None else codecs.lookup(declared[1].decode()).name
    if name not in _ENCODINGS:
        raise ValueError(f"encoding {name}")
    return name


def _without_specials(held: str) -> tuple[str, str]:
    """A text without its comments and CDATA, and the rest of it from a comment or CDATA on that has not ended yet."""
    text = _SPECIAL.sub(lambda found: escape(found[1]) if found[1] is not None else "", held)
    place = text.find("<!")
    if place < 0:
        return text, ""
    rest = text[place:]
    if not (rest.startswith(("<!--", "<![CDATA[")) or len(rest) < len("<![CDATA[")):
        raise ValueError("a declaration within a part")
    return text[:place], rest


def _check_length(*texts: str) -> None:
    if sum(map(len, texts)) > MAX_PIECE_CHARS:
        raise ValueError("an element is too long")
