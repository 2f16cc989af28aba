"""HTTP towards providers: the one file that knows the library, which is httpx and, beneath it, its engine httpcore.

A call takes a connection of its own from a stack of idle ones. httpx's pool is not used: it looks at every connection
at every request, which at 500 calls in flight costs more than the call. Redirects are not followed, proxies are
not taken from the environment (only certificates are: ``SSL_CERT_FILE``), compressed answers are not asked for, and
read when they come (:mod:`workers.providers.contentencoding`).
"""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from time import monotonic

import httpcore
import httpx
import orjson

from models.errors import ConfigurationError, FailureCode
from workers.providers.base import ProviderError
from workers.providers.contentencoding import Decompressor, decompressor_of
from workers.providers.sockets import AsyncioBackend

MAX_HELD_BYTES = 16 * 1024 * 1024
"""The most that is kept of one answer: a body, a line, or the text of a stream."""

MAX_STREAM_BYTES = 256 * 1024 * 1024
"""The most that is read of one answer: some 300 bytes of envelope come with each token."""

_IDLE_S = 30.0
_REST_S = 0.1


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that a call may take: to connect, to stay silent, and in all."""

    connect_s: float
    read_s: float
    total_s: float


class Sending:
    """A request's body on its way, as httpcore reads it; afterwards it says whether the call may have cost something.

    A provider may charge for what it has received, unless it answered with an error.
    """

    def __init__(self, body: bytes) -> None:
        self._pieces = [body]
        self._is_sent = False
        self._is_refused = False

    @property
    def may_cost(self) -> bool:
        return self._is_sent and not self._is_refused

    def refuse(self) -> None:
        """Note that an error was the answer."""
        self._is_refused = True

    def __aiter__(self) -> "Sending":
        return self

    async def __anext__(self) -> bytes:
        if self._pieces:
            return self._pieces.pop()
        self._is_sent = True  # who asks for more has sent what there was
        raise StopAsyncIteration


class Answer:
    """The head of an answer and its body as it comes."""

    def __init__(self, response: httpcore.Response) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers
        }
        self._response = response

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, decompressed, up to ``MAX_STREAM_BYTES``; raises ProviderError."""
        size, started = 0, False
        decompressor: Decompressor | None = None
        with _provider_errors():
            async for chunk in self._response.aiter_stream():
                if not started and chunk:
                    started = True
                    decompressor = decompressor_of(self.headers.get("content-encoding", ""), chunk)
                if decompressor is None:
                    size += len(chunk)
                    if size > MAX_STREAM_BYTES:
                        raise too_large()
                    yield chunk
                    continue
                for piece in decompressor.feed(chunk):
                    size += len(piece)
                    if size > MAX_STREAM_BYTES:
                        raise too_large()
                    yield piece
                    await asyncio.sleep(0)  # a few bytes may be megabytes: other calls go on meanwhile

    async def read(self, at_most: int) -> bytes:
        """The first ``at_most`` bytes of an error's body, or nothing where they cannot be decompressed."""
        body = bytearray()
        try:
            async for chunk in self.chunks():
                body += chunk
                if len(body) >= at_most:
                    break
        except ProviderError as error:
            if error.failure.code is not FailureCode.OVERLOADED:
                raise
        return bytes(body[:at_most])


class Http:
    """Connections to one provider."""

    def __init__(self, base_url: str, limits: Limits) -> None:
        try:
            url = httpx.URL(base_url)
        except httpx.InvalidURL as error:
            raise ConfigurationError(f"base_url is no URL: {error}") from None
        if url.scheme not in {"http", "https"} or not url.host:
            raise ConfigurationError("base_url must begin with http:// or https:// and a host")
        self._url = url
        path, mark, query = url.raw_path.partition(b"?")
        self._path = path.rstrip(b"/")
        self._query = mark + query
        self._host = url.netloc
        self._total_s = limits.total_s
        self._timeouts = {"connect": limits.connect_s, "read": limits.read_s, "write": limits.read_s}
        self._idle: deque[tuple[float, httpcore.AsyncHTTPConnection]] = deque()

    @asynccontextmanager
    async def post(self, path: str, headers: Mapping[str, str], body: bytes, sending: Sending) -> AsyncIterator[Answer]:
        """POST JSON and read the answer; leaving early, by an error or by cancellation, closes the connection at once.

        ``sending`` is of this body. Raises ProviderError: ``timeout`` when a limit passed, ``connection`` when there is
        none or it broke.
        """
        connection = await self._take()
        request = self._request(path, headers, len(body), sending)
        try:
            with _provider_errors():
                async with asyncio.timeout(self._total_s):
                    response = await connection.handle_async_request(request)
                    if not 200 <= response.status < 300:
                        sending.refuse()
                    try:
                        yield Answer(response)
                    finally:
                        await response.aclose()
        finally:
            await self._give_back(connection)

    async def close(self) -> None:
        """Close every idle connection."""
        while self._idle:
            await self._idle.popleft()[1].aclose()

    def _request(self, path: str, headers: Mapping[str, str], length: int, content: Sending) -> httpcore.Request:
        url = httpcore.URL(
            scheme=self._url.raw_scheme,
            host=self._url.raw_host,
            port=self._url.port,
            target=self._path + path.encode() + self._query,
        )
        own = [(b"host", self._host), (b"content-length", b"%d" % length), *_HEADERS]
        added = [(name.encode(), value.encode()) for name, value in headers.items()]
        extensions = {"timeout": self._timeouts}
        return httpcore.Request(b"POST", url, headers=own + added, content=content, extensions=extensions)

    async def _take(self) -> httpcore.AsyncHTTPConnection:
        """The connection that was used last, if it is still there, or a new one."""
        while self._idle:
            _, connection = self._idle.pop()
            if connection.is_available() and not connection.has_expired():
                return connection
            await connection.aclose()
        origin = httpcore.Origin(self._url.raw_scheme, self._url.raw_host, self._url.port or _PORTS[self._url.scheme])
        return httpcore.AsyncHTTPConnection(
            origin, ssl_context=_certificates(), keepalive_expiry=_IDLE_S, network_backend=_BACKEND
        )

    async def _give_back(self, connection: httpcore.AsyncHTTPConnection) -> None:
        """Keep a connection that can be used again; close those that were idle for long after a burst."""
        if connection.is_idle():
            self._idle.append((monotonic(), connection))
        else:
            await connection.aclose()
        oldest = monotonic() - _IDLE_S
        while self._idle and self._idle[0][0] < oldest:
            await self._idle.popleft()[1].aclose()


_CR, _R = b"\rr"


class EventReader:
    """Server-sent events out of chunks: feed it bytes, get the data of the events that are complete.

    Source: WHATWG HTML, 9.2.6, and what servers do besides: events without an empty line between them, and errors as
    an event of the name ``error``, or in a field of this name. An error's data becomes ``{"error": ...}``. Other names,
    and ids, are passed over: providers repeat them in the data.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._is_error = False
        self._skips_newline = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that this chunk completes. Raises ProviderError when a line has no end."""
        if _CR in chunk or self._skips_newline:
            chunk = self._with_newlines(chunk)
        if self._held:
            searched = len(self._held)
            self._held += chunk
            if b"\n" not in chunk:
                if searched + len(chunk) > MAX_HELD_BYTES:
                    raise too_large()
                return []
            chunk = bytes(self._held)
            self._held.clear()
        lines = chunk.split(b"\n")
        if rest := lines.pop():
            self._held += rest
        return self._events(lines)

    def end(self) -> list[bytes]:
        """The event that the end of the stream completes, if one was begun."""
        last = [bytes(self._held), b""]
        self._held.clear()
        return self._events(last)

    def _with_newlines(self, chunk: bytes) -> bytes:
        """The chunk with LF for each CR LF, which two chunks may share, and for each CR."""
        if self._skips_newline and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._skips_newline = False
        self._skips_newline |= chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _events(self, lines: list[bytes]) -> list[bytes]:
        events: list[bytes] = []
        held = self._data
        for line in lines:
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if held and _begins_another(held[-1], data):
                    self._complete(events)
                held.append(data)
                self._size += len(line)
            elif not line:
                if len(held) == 1 and not self._is_error:
                    if data := held.pop():
                        events.append(data)
                    self._size = 0
                elif held or self._is_error:
                    self._complete(events)
            elif line[-1] == _R or line[:2] == b"er":
                self._note_error(line)
        if self._size > MAX_HELD_BYTES:
            raise too_large()
        return events

    def _note_error(self, line: bytes) -> None:
        """Note that the event is an error, if this line names it so, and take the data of a field ``error``."""
        name, _, value = line.partition(b":")
        if name == b"error":
            self._data.append(value.strip())
        self._is_error |= name == b"error" or (name == b"event" and value.strip() == b"error")

    def _complete(self, events: list[bytes]) -> None:
        """Add the event whose data is there."""
        data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        if self._is_error:
            data = _as_error(data)
        if data:
            events.append(data)
        self._data.clear()
        self._size = 0
        self._is_error = False


def _begins_another(before: bytes, data: bytes) -> bool:
    """Whether a line is of another event than the line before: one JSON document has no ``{`` right after a ``}``."""
    return before.endswith(b"}") and (data.startswith(b"{") or data == b"[DONE]")


def _as_error(data: bytes) -> bytes:
    """The data of an error event, as a document that has an error."""
    try:
        said = orjson.loads(data)
    except orjson.JSONDecodeError:
        said = data.decode("utf-8", "replace") or "no message"
    return data if isinstance(said, dict) and said.get("error") else orjson.dumps({"error": said or "no message"})


async def finish(chunks: AsyncIterator[bytes]) -> None:
    """Read the little that follows an answer's last event, so that its connection can be used again."""
    with suppress(TimeoutError, ProviderError):
        async with asyncio.timeout(_REST_S):
            async for _ in chunks:
                pass


def too_large() -> ProviderError:
    """The error for an answer beyond the caps."""
    return ProviderError.of(FailureCode.OVERLOADED, "the provider's answer has no end: it was cut off")


_BACKEND = AsyncioBackend()
_PORTS = {"http": 80, "https": 443}
_HEADERS = [
    (b"accept", b"text/event-stream, application/json"),
    (b"accept-encoding", b"identity"),
    (b"content-type", b"application/json"),
    (b"user-agent", b"headrace"),
]


@contextmanager
def _provider_errors() -> Iterator[None]:
    """Turn what the library and the limits raise into ProviderError."""
    try:
        yield
    except httpcore.ConnectTimeout as error:
        raise ProviderError.of(
            FailureCode.TIMEOUT, "no connection to the provider in time", detail=_say(error)
        ) from None
    except httpcore.TimeoutException as error:
        raise ProviderError.of(
            FailureCode.TIMEOUT, "the provider was silent for too long", detail=_say(error)
        ) from None
    except TimeoutError:
        raise ProviderError.of(FailureCode.TIMEOUT, "no answer in time (the call's total limit)") from None
    except httpcore.ConnectError as error:
        raise ProviderError.of(FailureCode.CONNECTION, "the provider cannot be reached", detail=_say(error)) from None
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ConnectionNotAvailable) as error:
        raise ProviderError.of(
            FailureCode.CONNECTION, "the connection to the provider broke", detail=_say(error)
        ) from None


def _say(error: Exception) -> str:
    return str(error) or type(error).__name__


@cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()
