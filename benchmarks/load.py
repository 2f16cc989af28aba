"""A lean HTTP/1.1 load client: keep-alive connections that each send one request at a time.

It costs tens of microseconds per request, so that on two cores it leaves the machine to what is measured.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import quantiles
from typing import cast

import uvloop


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a run of requests saw; times in seconds."""

    requests: int
    elapsed_s: float
    latencies_s: list[float]
    statuses: dict[int, int]

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.elapsed_s

    def percentile_ms(self, percent: int) -> float:
        """A percentile of the latencies, in milliseconds."""
        return quantiles(self.latencies_s, n=100, method="inclusive")[percent - 1] * 1000


class _Connection(asyncio.Protocol):
    """One keep-alive connection; asks ``next_body`` for the next request until it has none."""

    def __init__(self, head: bytes, next_body: Callable[[], bytes | None], done: asyncio.Future[None]) -> None:
        self._head = head
        self._next_body = next_body
        self._done = done
        self._buffer = b""
        self.latencies: list[float] = []
        self.statuses: dict[int, int] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        lowered = head.lower()
        start = lowered.index(b"content-length:") + 15
        end = lowered.find(b"\r\n", start)
        length = int(lowered[start : end if end >= 0 else None])
        if len(body) < length:
            return
        self._buffer = b""
        self.latencies.append(time.perf_counter() - self._sent_at)
        status = int(head[9:12])
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(error or ConnectionError("the server closed the connection"))

    def _send(self) -> None:
        body = self._next_body()
        if body is None:
            self._done.set_result(None)
            self._transport.close()
            return
        self._sent_at = time.perf_counter()
        self._transport.write(self._head + str(len(body)).encode() + b"\r\n\r\n" + body)


def _same(protocol: _Connection) -> _Connection:
    return protocol


async def post_all(
    host: str, port: int, path: str, bodies: list[bytes], *, connections: int = 32, api_key: str = "", prefer: str = ""
) -> LoadResult:
    """POST every body over ``connections`` connections and wait for the answers."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {api_key}\r\n{f'Prefer: {prefer}' if prefer else 'Accept: */*'}\r\nContent-Length: "
    ).encode()
    remaining = iter(bodies)
    loop = asyncio.get_running_loop()
    waits: list[asyncio.Future[None]] = []
    protocols: list[_Connection] = []
    started = time.perf_counter()
    for _ in range(connections):
        done: asyncio.Future[None] = loop.create_future()
        protocol = _Connection(head, partial(next, remaining, None), done)
        await loop.create_connection(partial(_same, protocol), host, port)
        waits.append(done)
        protocols.append(protocol)
    await asyncio.gather(*waits)
    elapsed = time.perf_counter() - started
    statuses: dict[int, int] = {}
    for protocol in protocols:
        for status, number in protocol.statuses.items():
            statuses[status] = statuses.get(status, 0) + number
    latencies = [latency for protocol in protocols for latency in protocol.latencies]
    return LoadResult(len(latencies), elapsed, latencies, statuses)


def run_load(
    host: str, port: int, path: str, bodies: list[bytes], *, connections: int = 32, api_key: str = "", prefer: str = ""
) -> LoadResult:
    """:func:`post_all` on a loop of its own."""
    return uvloop.run(post_all(host, port, path, bodies, connections=connections, api_key=api_key, prefer=prefer))
