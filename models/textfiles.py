"""Text files that people write: a catalogue, a key, a prompt. Editors and shells encode them differently."""

import codecs
from pathlib import Path


def decode_text(data: bytes) -> str:
    """The text of a file: UTF-8 with or without a byte order mark, or UTF-16 with one, as PowerShell writes it.

    Raises ValueError with what is wrong.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
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
