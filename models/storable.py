"""What Postgres can store: text without NUL and lone surrogates, integers in range, JSON of nothing else.

An answer, an error or a count may come from a provider or from what a caller asked an LLM to say. A statement with one
value that Postgres cannot store is refused as a whole, with the usage that it was to book.
"""

from collections.abc import Sequence
from typing import Any

import orjson

MAX_MESSAGE = 2000
"""The longest error message that is kept, in characters."""

MAX_INT = 2**31 - 1
"""The largest value of PostgreSQL's ``integer``."""

MAX_SMALLINT = 2**15 - 1

_INT64 = range(-(2**63), 2**63)


def storable_text(text: str, most: int | None = None) -> str:
    """Text without NUL, with U+FFFD in place of each lone surrogate, cut to ``most`` characters."""
    if most is not None and len(text) > most:
        text = text[: most - 1] + "…"
    if "\0" in text:
        text = text.replace("\0", "")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            text = "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in text)
    return text


def storable_count(number: int, most: int = MAX_INT) -> int:
    """A count from 0 to ``most``."""
    if type(number) is int and 0 <= number <= most:
        return number
    return min(max(int(number), 0), most)


def dump_rows(rows: Sequence[dict[str, Any]]) -> str:  # Any: columns of several types
    """JSON text of rows that Postgres can store, whatever is in them; Decimals and ids become strings.

    Rows are looked at one value after the other only where the quick way finds a reason to.
    """
    try:
        dumped = orjson.dumps(rows, default=str)
    except TypeError:  # a lone surrogate, an integer of more than 64 bits, nesting without end
        dumped = b"\\u0000"
    if b"\\u0000" in dumped:
        dumped = orjson.dumps(_storable(rows), default=str)
    return dumped.decode()


def _storable(value: Any) -> Any:  # Any: JSON
    match value:
        case str():
            return storable_text(str(value))
        case bool():
            return value
        case int():
            return value if value in _INT64 else float(value) if abs(value) < 10**300 else None
        case dict():
            return {storable_text(str(name)): _storable(member) for name, member in value.items()}
        case list() | tuple():
            return [_storable(member) for member in value]
    return value
