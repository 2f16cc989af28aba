"""Compressed bodies: identity is asked for, and proxies compress all the same, with or without saying so.

What a body is, its first bytes tell: a header may be left over from a proxy that has decompressed already, or missing.
"""

import zlib
from collections.abc import Iterator

from models.errors import FailureCode
from workers.providers.base import ProviderError

_MOST_AT_ONCE = 64 * 1024
_GZIP = 0x1F
_ZLIB_DEFLATE = 8
_PLAIN = (b"{", b"[", b"d", b"e", b":", b"i", b"r", b"<", b" ", b"\n", b"\r", b"\xef")
"""What JSON, a stream of events, a page of HTML, or a byte order mark begins with."""

UNREADABLE = frozenset({"br", "zstd", "compress", "x-compress", "dcb", "dcz"})
"""Encodings that this program does not read."""


class Decompressor:
    """Reads gzip, zlib or raw deflate as it comes, some members one after the other, in pieces of bounded size."""

    def __init__(self, window_bits: int) -> None:
        self._window_bits = window_bits
        self._engine = zlib.decompressobj(window_bits)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What these bytes say, in pieces; raises ProviderError when they are damaged."""
        while data:
            try:
                piece = self._engine.decompress(data, _MOST_AT_ONCE)
            except zlib.error as error:
                raise _unreadable("its compression is damaged", str(error)) from None
            if piece:
                yield piece
            data = self._engine.unconsumed_tail
            if self._engine.eof:
                data = self._engine.unused_data
                if data[:1] != bytes([_GZIP]):
                    return  # what follows the end is no further member, and nothing
                self._engine = zlib.decompressobj(self._window_bits)


def decompressor_of(encoding: str, start: bytes) -> Decompressor | None:
    """What reads a body with this ``Content-Encoding`` and these first bytes; None where it is plain.

    Raises ProviderError when it is compressed in a way that nobody asked for and this program does not know.
    """
    if start[0] == _GZIP:
        return Decompressor(zlib.MAX_WBITS | 16)
    names = {name.strip().lower() for name in encoding.split(",")}
    if names & UNREADABLE and not start.startswith(_PLAIN):
        raise _unreadable("it is compressed in a form that was not asked for", f"content-encoding: {encoding}")
    if "deflate" in names:
        if start[0] & 0x0F == _ZLIB_DEFLATE and start[0] >> 4 <= 7:
            return Decompressor(zlib.MAX_WBITS)
        return None if start.startswith(_PLAIN) else Decompressor(-zlib.MAX_WBITS)
    return None


def _unreadable(why: str, detail: str) -> ProviderError:
    return ProviderError.of(FailureCode.OVERLOADED, f"the provider's answer cannot be read: {why}", detail=detail)
