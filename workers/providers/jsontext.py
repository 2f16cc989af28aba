"""JSON and text as servers write them, where they are not what the standards say.

orjson reads all that is JSON. What it refuses is read once more by Python's own reader, which takes what servers are
seen to send: one half of a surrogate pair (a proxy in UTF-16 cut between the halves), bytes that are not UTF-8, NaN,
control characters within a string.
"""

import codecs
import json
import re
from typing import Any

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_BYTES = re.compile("[\udc80-\udcff]+")
_LAST_BYTES = re.compile("[\udc80-\udcff]+$")
_LONE = re.compile("[\ud800-\udfff]")


def parse_leniently(data: bytes) -> Any:  # Any: a provider's JSON
    """A document that orjson refused; raises ValueError when it is not JSON in any way.

    Its strings may have lone surrogates, and bytes that are not UTF-8 as U+DC80 to U+DCFF: see :class:`TextJoiner`.
    """
    text = data.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "surrogateescape")
    try:
        return json.loads(text, strict=False)
    except RecursionError:
        raise ValueError("nested too deeply") from None


class TextJoiner:
    """Puts characters together that came in two pieces; hands out only text that can be encoded."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> str:
        """The text that is complete with this piece: half a character waits for the other half."""
        text = _pairs(self._held + piece)
        self._held = ""
        if "\ud800" <= text[-1:] <= "\udbff":
            text, self._held = text[:-1], text[-1]
        elif run := _LAST_BYTES.search(text):
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            whole = decoder.decode(_bytes(run[0]))
            pending, _ = decoder.getstate()
            text, self._held = text[: run.start()] + whole, pending.decode("ascii", "surrogateescape")
        return _encodable(text)

    def end(self) -> str:
        """U+FFFD for each half that is still waiting for its other half."""
        held, self._held = self._held, ""
        return _encodable(held)


def _pairs(text: str) -> str:
    """Text with the halves of surrogate pairs put together that stand side by side."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _encodable(text: str) -> str:
    text = _BYTES.sub(lambda run: _bytes(run[0]).decode("utf-8", "replace"), text)
    return _LONE.sub("\ufffd", text)


def _bytes(run: str) -> bytes:
    return run.encode("ascii", "surrogateescape")
