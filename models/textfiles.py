"""Text as editors, shells and spreadsheets write it: which byte-order marks are before it, and its encoding."""

import codecs
from pathlib import Path

UTF16_MARKS = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
"""The byte-order marks of UTF-16, both of two bytes, and the encodings that they name."""


def marks_of(head: bytes) -> int:
    """The length of the UTF-8 byte-order marks at the beginning: a program that adds one to another makes two."""
    length = 0
    while head.startswith(codecs.BOM_UTF8, length):
        length += len(codecs.BOM_UTF8)
    return length


def decode_text(data: bytes) -> str:
    """The text of a file that a person wrote: UTF-8, or UTF-16 with a byte-order mark, as PowerShell writes it.

    UTF-8 may have a mark too. Raises ValueError with what is wrong.
    """
    if data[:2] in UTF16_MARKS:
        name, encoding = "UTF-16", "utf-16"
    else:
        name, encoding = "UTF-8", "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not {name}: byte {error.start} cannot be decoded; save it as UTF-8") from None


def read_text(path: Path) -> str:
    """The text of a file that a person wrote. Raises OSError, and ValueError with what is wrong."""
    return decode_text(path.read_bytes())
