"""A TCP proxy that can be closed: the way of one process to a server, to be cut for a while."""

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

T = TypeVar("T")


class Proxy:
    """Listens on a port of its own and forwards to the server of a URL; use as a context manager.

    While it is closed, connections through it are broken and new ones are refused.
    """

    def __init__(self, server_url: str) -> None:
        self._parts = urlsplit(server_url)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._port = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._ways: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The server's URL by way of the proxy."""
        account, _, _ = self._parts.netloc.rpartition("@")
        address = f"127.0.0.1:{self._port}"
        return urlunsplit(self._parts._replace(netloc=f"{account}@{address}" if account else address))

    def __enter__(self) -> Self:
        self._thread.start()
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def open(self) -> None:
        """Let connections through."""
        self._run(self._start())

    def close(self) -> None:
        """Break what is connected and refuse what comes."""
        self._run(self._stop())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:  # Any: the types of a coroutine's sends
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for writer in list(self._open):
            writer.transport.abort()
        if self._ways:
            await asyncio.wait(self._ways)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            there_reader, there_writer = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        except OSError:
            writer.transport.abort()
            self._open.discard(writer)
            return
        self._open.add(there_writer)
        for source, target in ((reader, there_writer), (there_reader, writer)):
            way = asyncio.create_task(self._forward(source, target))
            self._ways.add(way)
            way.add_done_callback(self._ways.discard)

    async def _forward(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65_536):
                target.write(data)
                await target.drain()
        target.transport.abort()
        self._open.discard(target)
