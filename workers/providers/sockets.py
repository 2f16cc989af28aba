"""Sockets for httpcore, straight on asyncio: what a streamed answer costs is decided here.

httpcore's own go through anyio, whose read of one small chunk costs four times as much, and more under TLS. A worker
that streams 500 answers reads thousands of such chunks every second.
"""

import asyncio
import ssl
from collections.abc import Iterable
from typing import Any, cast

import httpcore

_READ_AHEAD_BYTES = 256 * 1024
_TICK_S = 0.25


class AsyncioBackend(httpcore.AsyncNetworkBackend):
    """Opens connections."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,  # Any: httpcore's interface
    ) -> httpcore.AsyncNetworkStream:
        """Connect, trying a host's addresses in turn. Raises httpcore's ConnectTimeout and ConnectError."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                _, stream = await loop.create_connection(Stream, host, port, happy_eyeballs_delay=_TICK_S)
        except TimeoutError:
            raise httpcore.ConnectTimeout("no connection in time") from None
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(str(error)) from None
        return stream


class Stream(asyncio.Protocol, httpcore.AsyncNetworkStream):
    """One connection; read by one task at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._ended = False
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._is_held = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > _READ_AHEAD_BYTES and not self._is_held:
            self._is_held = True
            self._transport.pause_reading()
        self._wake(self._reader)

    def eof_received(self) -> None:
        self._ended = True
        self._wake(self._reader)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended, self._error = True, exc
        self._wake(self._reader)
        self._wake(self._writer)

    def pause_writing(self) -> None:
        self._writer = self._loop.create_future()

    def resume_writing(self) -> None:
        self._wake(self._writer)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """What has come, at least one byte; none when the other side has ended. Raises ReadTimeout, ReadError."""
        if not self._received and not self._ended:
            self._reader = self._loop.create_future()
            timer = None if timeout is None else self._loop.call_later(timeout, self._give_up, self._reader)
            try:
                await self._reader
            finally:
                self._reader = None
                if timer is not None:
                    timer.cancel()
        if not self._received:
            if self._error is not None:
                raise httpcore.ReadError(str(self._error))
            return b""
        data = bytes(self._received[:max_bytes])
        del self._received[:max_bytes]
        if self._is_held and not self._received:
            self._is_held = False
            self._transport.resume_reading()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Send, waiting while the other side takes nothing. Raises WriteTimeout, WriteError."""
        if self._transport.is_closing():
            raise httpcore.WriteError("the connection is closed")
        self._transport.write(buffer)
        if self._writer is not None:
            try:
                async with asyncio.timeout(timeout):
                    await self._writer
            except TimeoutError:
                raise httpcore.WriteTimeout("the request was not taken in time") from None
            finally:
                self._writer = None

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        """Go on under TLS. Raises ConnectTimeout, ConnectError."""
        secured = None
        try:
            async with asyncio.timeout(timeout):
                secured = await self._loop.start_tls(
                    self._transport, self, ssl_context, server_hostname=server_hostname
                )
        except TimeoutError:
            raise httpcore.ConnectTimeout("no TLS in time") from None
        except (OSError, ssl.SSLError) as error:
            raise httpcore.ConnectError(str(error)) from None
        finally:
            if secured is None:
                self._transport.abort()
        if secured is None:
            raise httpcore.ConnectError("the connection was closed")
        self._transport = secured
        return self

    async def aclose(self) -> None:
        """Close at once: whoever closes wants nothing more from the other side."""
        self._transport.abort()

    def get_extra_info(self, info: str) -> Any:  # Any: httpcore's interface
        """``is_readable``: what an idle connection must not be, for it has been closed or spoken on out of turn."""
        if info == "is_readable":
            return self._ended or bool(self._received)
        return self._transport.get_extra_info({"server_addr": "peername", "client_addr": "sockname"}.get(info, info))

    @staticmethod
    def _wake(waiting: "asyncio.Future[None] | None") -> None:
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    @staticmethod
    def _give_up(waiting: "asyncio.Future[None]") -> None:
        if not waiting.done():
            waiting.set_exception(httpcore.ReadTimeout("nothing came in time"))
