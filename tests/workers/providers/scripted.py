"""A real HTTP server that does what a test tells it: answers, drips, falls silent, breaks off."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]  # Any: JSON


@dataclass
class Call:
    """One request, and the means to answer it."""

    path: str
    headers: dict[str, str]
    body: Json
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, status: int, body: bytes, headers: Sequence[str] = ()) -> None:
        """Send a whole answer."""
        lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *headers]
        await self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def begin(self) -> None:
        """Send the head of a stream of events."""
        await self.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        """Send one chunk of a stream."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def event(self, data: object) -> None:
        """Send one event with JSON data."""
        await self.chunk(b"data: " + json.dumps(data).encode() + b"\n\n")

    async def end(self) -> None:
        """End a stream."""
        await self.send(b"0\r\n\r\n")

    def drop(self) -> None:
        """Close the connection in the middle of whatever it is in."""
        self.writer.close()


Handler = Callable[[Call], Awaitable[None]]


@dataclass
class Server:
    """What a server saw."""

    url: str = ""
    calls: list[Call] = field(default_factory=list)
    connections: int = 0
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    """Some caller closed its connection."""


@asynccontextmanager
async def serve(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """Run a server on this event loop whose every call is answered by ``handler``."""
    server = Server()
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        tasks.add(asyncio.ensure_future(connected(reader, writer)))

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            try:
                while call := await _read_call(reader, writer):
                    server.calls.append(call)
                    answering = asyncio.ensure_future(handler(call))
                    closing = asyncio.ensure_future(_closed(reader))
                    await asyncio.wait({answering, closing}, return_when=asyncio.FIRST_COMPLETED)
                    if not answering.done():
                        server.hung_up.set()
                        answering.cancel()
                    closing.cancel()
                    await asyncio.wait({answering, closing})
                    if answering.cancelled():
                        return
                    answering.result()
                    if writer.is_closing():
                        return
            finally:
                writer.close()

    listening = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    server.url = f"http{'s' if tls else ''}://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def _closed(reader: asyncio.StreamReader) -> None:
    """Wait until the caller hangs up, without taking what it sends."""
    while not reader.at_eof():  # noqa: ASYNC110  # a StreamReader has no event for it
        await asyncio.sleep(0.002)


async def _read_call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Call | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    pairs = [line.partition(": ") for line in head[1:] if line]
    headers = {name.lower(): value for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Call(head[0].split()[1], headers, json.loads(body), writer)
