"""A provider for benchmarks: OpenAI's chat completions, streamed or not, after a set time, with a clock.

    python -m benchmarks.mock_provider PORT LATENCY_S

``GET /times`` says what it saw: the most calls in flight, and the arrival and the end of each call (unix seconds), by
the text of its last message. One process answers thousands of calls per second, more than what it is used to measure.
"""

import asyncio
import sys
import time

import orjson
import uvloop

PIECES = 16
_USAGE = {"prompt_tokens": 12, "completion_tokens": PIECES, "total_tokens": 12 + PIECES}


def _event(delta: dict[str, str], reason: str | None = None, **more: object) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
    return b"data: " + orjson.dumps(_envelope("chat.completion.chunk") | {"choices": choices} | more) + b"\n\n"


def _envelope(kind: str) -> dict[str, object]:
    return {"id": "chatcmpl-benchmark", "object": kind, "created": 1_700_000_000, "model": "mock"}


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_FIRST = _HEAD + _chunk(_event({"role": "assistant", "content": ""}))
_REST = b"".join(
    [
        *(_chunk(_event({"content": "word "})) for _ in range(PIECES)),
        _chunk(_event({}, "stop")),
        _chunk(
            b"data: " + orjson.dumps(_envelope("chat.completion.chunk") | {"choices": [], "usage": _USAGE}) + b"\n\n"
        ),
        _chunk(b"data: [DONE]\n\n"),
        b"0\r\n\r\n",
    ]
)
_WHOLE = _envelope("chat.completion") | {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * PIECES}, "finish_reason": "stop"}],
    "usage": _USAGE,
}


class Book:
    """What the server saw."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.most_in_flight = 0
        self.times: dict[str, tuple[float, float]] = {}

    def begin(self) -> None:
        """A call arrived."""
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def end(self, text: str, arrived: float) -> None:
        """A call was answered."""
        self.in_flight -= 1
        self.times[text] = (arrived, time.time())


class Connection(asyncio.Protocol):
    """One keep-alive connection that carries one call at a time."""

    def __init__(self, book: Book, latency_s: float) -> None:
        self._book = book
        self._latency_s = latency_s
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.WriteTransport = transport  # type: ignore[assignment]  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        arrived = time.time()
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        if head.startswith(b"GET"):
            self._buffer = b""
            seen = {"most_in_flight": self._book.most_in_flight, "times": self._book.times}
            self._transport.write(_whole(seen))
            return
        start = head.lower().index(b"content-length:") + 15
        length = int(head[start:].split(b"\r\n", 1)[0])
        if len(body) >= length:
            self._buffer = body[length:]
            self._answer(orjson.loads(body[:length]), arrived)

    def _answer(self, request: dict[str, object], arrived: float) -> None:
        self._book.begin()
        if request.get("stream"):
            self._transport.write(_FIRST)
        if self._latency_s:
            asyncio.get_running_loop().call_later(self._latency_s, self._finish, request, arrived)
        else:
            self._finish(request, arrived)

    def _finish(self, request: dict[str, object], arrived: float) -> None:
        messages: list[dict[str, str]] = request["messages"]  # type: ignore[assignment]  # as the API has it
        self._book.end(messages[-1]["content"], arrived)
        self._transport.write(_REST if request.get("stream") else _whole(_WHOLE))


def _whole(body: object) -> bytes:
    content = orjson.dumps(body)
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(content),
        content,
    )


async def main(port: int, latency_s: float) -> None:
    """Serve for ever."""
    book = Book()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(book, latency_s), "127.0.0.1", port, backlog=1024
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
