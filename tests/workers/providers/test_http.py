"""The transport: its limits, its caps, its connections, and what a cancellation does to them."""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from models.pricing import Usage
from tests.workers.providers.calling import REQUEST, call, llm
from tests.workers.providers.scripted import Call, Server, serve
from tests.workers.providers.test_openai import piece, streamed
from workers.providers import http, transcript
from workers.providers.base import GenerationRequest, Meter, ProviderError
from workers.providers.http import EventReader
from workers.providers.openai import OpenAIProvider

SILENCE = GenerationRequest(REQUEST.messages, max_tokens=7)
Act = Callable[[OpenAIProvider, Server], Awaitable[None]]


def with_provider(handler: Callable[[Call], Awaitable[None]], act: Act, tls: ssl.SSLContext | None = None) -> None:
    """Run ``act`` with a provider whose server ``handler`` plays."""

    async def main() -> None:
        async with serve(handler, tls) as server:
            provider = OpenAIProvider(llm("openai", server.url))
            try:
                await act(provider, server)
            finally:
                await provider.close()

    asyncio.run(main())


async def silent(call: Call) -> None:
    await asyncio.sleep(60)


async def begins_and_stays_silent(call: Call) -> None:
    await call.begin()
    await call.event(piece("hello world"))
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("handler", "used"),
    [(silent, REQUEST.max_tokens), (begins_and_stays_silent, 4)],
    ids=["before the head", "in the stream"],
)
def test_a_cancelled_call_closes_its_socket_at_once_and_keeps_what_was_used(
    handler: Callable[[Call], Awaitable[None]], used: int
) -> None:
    async def act(provider: OpenAIProvider, server: Server) -> None:
        meter = Meter()
        running = asyncio.create_task(provider.generate(REQUEST, meter))
        while not server.calls or (handler is not silent and meter.first_token_at is None):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.wait_for(server.hung_up.wait(), 1)
        await asyncio.wait({running})
        assert running.cancelled()
        assert meter.usage.output_tokens == used
        assert meter.usage.estimated

    with_provider(handler, act)


def test_calls_one_after_another_share_a_connection_and_calls_at_once_do_not() -> None:
    async def act(provider: OpenAIProvider, server: Server) -> None:
        for _ in range(3):
            await provider.generate(REQUEST, Meter())
        assert server.connections == 1
        await asyncio.gather(*(provider.generate(REQUEST, Meter()) for _ in range(5)))
        assert server.connections == 5

    with_provider(streamed, act)


def test_a_connection_that_failed_is_not_used_again() -> None:
    async def breaks_first(call: Call) -> None:
        await call.begin()
        if len(seen) == 1:
            call.drop()
        else:
            await call.event(piece("hello", "stop"))
            await call.end()

    seen: list[Call] = []

    async def handler(call: Call) -> None:
        seen.append(call)
        await breaks_first(call)

    async def act(provider: OpenAIProvider, server: Server) -> None:
        with pytest.raises(ProviderError, match="connection to the provider broke") as caught:
            await provider.generate(REQUEST, Meter())
        assert "peer closed" in caught.value.detail
        assert (await provider.generate(REQUEST, Meter())).text == "hello"
        assert server.connections == 2

    with_provider(handler, act)


def test_a_server_that_leaves_the_stream_open_after_its_end_does_not_delay_the_answer() -> None:
    async def handler(call: Call) -> None:
        await call.begin()
        await call.event(piece("hello", "stop"))
        await call.chunk(b"data: [DONE]\n\n")
        await asyncio.sleep(60)

    started = time.monotonic()
    assert call("openai", handler).generation.text == "hello"
    assert time.monotonic() - started < 2  # of 60


def test_a_silence_longer_than_the_read_limit_is_a_timeout() -> None:
    error = call("openai", begins_and_stays_silent, read_timeout_s=0.1).error
    assert error.failure.code == "timeout"


def test_an_answer_that_drips_past_the_total_limit_is_a_timeout() -> None:
    async def drip(call: Call) -> None:
        await call.begin()
        while True:
            await call.event(piece("x"))
            await asyncio.sleep(0.02)

    outcome = call("openai", drip, timeout_s=0.3, read_timeout_s=10)
    assert outcome.error.failure.code == "timeout"
    assert outcome.meter.usage.output_tokens > 1


async def without_end(call: Call, data: bytes) -> None:
    await call.begin()
    while True:
        await call.chunk(data)


@pytest.mark.parametrize(
    ("cap", "where", "data"),
    [
        ("MAX_HELD_BYTES", http, b"data: a line without end"),
        ("MAX_HELD_BYTES", http, b"data: an event without end\n"),
        ("MAX_STREAM_BYTES", http, b": a stream without end\n\n"),
        ("MAX_HELD_BYTES", transcript, b'data: {"choices": [{"delta": {"content": "a text without end"}}]}\n\n'),
    ],
    ids=["line", "event", "stream", "text"],
)
def test_what_has_no_end_is_cut_off(monkeypatch: pytest.MonkeyPatch, cap: str, where: object, data: bytes) -> None:
    monkeypatch.setattr(where, cap, 10_000)
    error = call("openai", lambda call: without_end(call, data)).error
    assert error.failure.code == "overloaded"
    assert "no end" in error.failure.message


def test_redirects_are_not_followed_and_proxies_not_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async def redirect(call: Call) -> None:
        await call.answer(307, b"", [f"location: {call.path}/elsewhere"])

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    outcome = call("openai", redirect)
    assert outcome.error.failure.code == "provider_auth"
    assert len(outcome.server.calls) == 1
    assert outcome.meter.usage == Usage()


@pytest.fixture
def authority() -> Iterator[trustme.CA]:
    """An authority of the test's own; what the process trusts is forgotten before and after."""
    http._certificates.cache_clear()
    yield trustme.CA()
    http._certificates.cache_clear()


def tls_server(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_calls_go_over_tls_by_an_authority_that_the_environment_names(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))

    async def act(provider: OpenAIProvider, server: Server) -> None:
        long = GenerationRequest([{"role": "user", "content": "x" * 2_000_000}], 5)
        for request in (REQUEST, long):
            assert (await provider.generate(request, Meter())).text == "hello"
        assert server.connections == 1
        running = asyncio.create_task(provider.generate(SILENCE, Meter()))
        while len(server.calls) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.wait_for(server.hung_up.wait(), 1)
        await asyncio.wait({running})

    async def handler(call: Call) -> None:
        await (silent if call.body["max_tokens"] == SILENCE.max_tokens else streamed)(call)

    with_provider(handler, act, tls_server(authority))


def test_a_certificate_of_nobody_is_a_connection_error(authority: trustme.CA) -> None:
    async def act(provider: OpenAIProvider, server: Server) -> None:
        with pytest.raises(ProviderError) as caught:
            await provider.generate(REQUEST, Meter())
        assert "certificate verify failed" in caught.value.detail
        assert caught.value.failure.code == "connection"
        assert server.calls == []

    with_provider(streamed, act, tls_server(authority))


EVENTS = [b'{"a": 1}', b"[DONE]", b"two\nlines"]
STREAM = (
    b': a comment\nevent: x\ndata: {"a": 1}\n\ndata:[DONE]\r\n\r\n'
    b"id: 7\ndata: two\ndata: lines\n\ndata:\n\n\n\nretry: 5\n\n"
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_are_the_same_however_the_bytes_arrive(cuts: list[int]) -> None:
    reader, edges = EventReader(), [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[start:end] for start, end in pairwise(edges)]
    events = [event for chunk in chunks for event in reader.feed(chunk)]
    assert events == EVENTS
    assert reader.end() == []


def test_the_end_of_a_stream_completes_its_last_event() -> None:
    reader = EventReader()
    assert reader.feed(b"data: last") == []
    assert reader.end() == [b"last"]
