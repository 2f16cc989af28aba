"""What each failure of a provider means: every row of the table in docs/providers.md, against a real server."""

import asyncio
import json
import re
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing as closing_socket
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from time import time

import pytest

from models.errors import FailureCode
from models.pricing import Usage
from models.tokens import most_tokens
from tests.workers.providers.calling import PROVIDERS, REQUEST, call, llm
from tests.workers.providers.scripted import Call, serve
from tests.workers.providers.test_anthropic import START, closing, delta
from tests.workers.providers.test_openai import USAGE, piece
from tests.workers.providers.vendor_errors import SAID
from workers.providers.base import Meter, ProviderError
from workers.providers.failures import scrubbed, without_places
from workers.providers.waits import retry_after

DOCUMENT = Path(__file__).parents[3] / "docs" / "providers.md"


@dataclass(frozen=True)
class Row:
    """A provider's failure and what it must mean."""

    handler: Callable[[Call], Awaitable[None]]
    code: str
    retry_after_s: float | None = None
    provider: str = "openai"
    timeout_s: float = 5


def says(status: int, body: object = "", *headers: str) -> Callable[[Call], Awaitable[None]]:
    """A whole answer."""
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return lambda call: call.answer(status, content, headers)


async def busy_for_an_hour(call: Call) -> None:
    """A refusal with a date: that of the call, not of this module's import."""
    await says(503, "", f"retry-after: {formatdate(time() + 3600, usegmt=True)}")(call)


def streams(*events: object, end: bool = True, then: str = "") -> Callable[[Call], Awaitable[None]]:
    """A stream of events, and what follows it."""

    async def handler(call: Call) -> None:
        await call.begin()
        for event in events:
            await call.event(event)
        if then == "drop":
            call.drop()
        elif then == "hang":
            await asyncio.sleep(60)
        else:
            await call.end()

    return handler


async def hangs(call: Call) -> None:
    await asyncio.sleep(60)


async def drops(call: Call) -> None:
    call.drop()


async def fails_without_end(call: Call) -> None:
    await call.send(b"HTTP/1.1 503 X\r\ncontent-length: 9\r\n\r\n")
    await asyncio.sleep(60)


async def malformed_event(call: Call) -> None:
    await call.begin()
    await call.chunk(b'data: {"choices": [{\n\n')


def error(message: str, **fields: object) -> dict[str, object]:
    return {"error": {"message": message, **fields}}


def anthropic(kind: str, message: str = "no") -> dict[str, object]:
    return {"type": "error", "error": {"type": kind, "message": message}}


LONG = "This model's maximum context length is 4096 tokens. However, your messages resulted in 5000 tokens."
ROWS = {
    "429 with `Retry-After: 2`": Row(says(429, error("slow down"), "retry-after: 2"), "rate_limited", 2.0),
    "429 with `retry-after-ms: 1500`": Row(
        says(429, "", "retry-after-ms: 1500", "retry-after: 9"), "rate_limited", 1.5
    ),
    "429 without a time": Row(says(429, error("slow down")), "rate_limited"),
    "429 `insufficient_quota`": Row(says(429, error("pay", code="insufficient_quota")), "provider_auth"),
    "500": Row(says(500, "oops"), "overloaded"),
    "503 with `Retry-After` as a date": Row(busy_for_an_hour, "overloaded", 3600),
    "529 (Anthropic)": Row(says(529, anthropic("overloaded_error")), "overloaded", provider="anthropic"),
    "504": Row(says(504, "<html>"), "timeout"),
    "408": Row(says(408), "timeout"),
    "drops the connection before the head": Row(drops, "connection"),
    "drops the connection in the stream": Row(streams(piece("hel"), then="drop"), "connection"),
    "ends the stream without its end": Row(streams(piece("hel")), "connection"),
    "hangs before the head": Row(hangs, "timeout", timeout_s=0.2),
    "hangs in the stream": Row(streams(piece("hel"), then="hang"), "timeout", timeout_s=0.3),
    "malformed JSON": Row(says(200, '{"choices": [{'), "overloaded"),
    "malformed event": Row(malformed_event, "overloaded"),
    "empty body": Row(says(200), "overloaded"),
    "JSON of another kind": Row(says(200, {"answer": 42}), "overloaded"),
    "a page of HTML": Row(says(200, "<html>welcome</html>"), "overloaded"),
    "401": Row(says(401, error("who are you?")), "provider_auth"),
    "402": Row(says(402, error("pay")), "provider_auth"),
    "403": Row(says(403, error("not you")), "provider_auth"),
    "400": Row(says(400, error("bad")), "provider_rejected"),
    "404": Row(says(404, error("no such model")), "provider_auth"),
    "422 with a list of details": Row(says(422, {"detail": [{"msg": "bad"}]}), "provider_rejected"),
    "307": Row(says(307, "", "location: /elsewhere"), "provider_auth"),
    "context length (OpenAI)": Row(says(400, error("x", code="context_length_exceeded")), "context_length_exceeded"),
    "context length (Anthropic)": Row(
        says(400, anthropic("invalid_request_error", "prompt is too long: 208310 tokens > 200000 maximum")),
        "context_length_exceeded",
        provider="anthropic",
    ),
    "context length with max_tokens (Anthropic)": Row(
        says(400, anthropic("invalid_request_error", "input length and `max_tokens` exceed context limit: 5 + 6 > 10")),
        "context_length_exceeded",
        provider="anthropic",
    ),
    "context length (vLLM)": Row(
        says(400, {"object": "error", "message": LONG, "type": "BadRequestError", "code": 400}),
        "context_length_exceeded",
    ),
    "context length (llama-server)": Row(
        says(
            400,
            error(
                "the request exceeds the available context size, try increasing it",
                code=400,
                type="exceed_context_size_error",
            ),
        ),
        "context_length_exceeded",
    ),
    "413 `request_too_large` (Anthropic)": Row(
        says(413, anthropic("request_too_large")), "context_length_exceeded", provider="anthropic"
    ),
    "content filter (OpenAI, Azure)": Row(says(400, error("no", code="content_filter")), "content_filtered"),
    "finish reason `content_filter`": Row(streams(piece("he", "content_filter")), "content_filtered"),
    "refusal (OpenAI)": Row(streams(piece(refusal="I will not"), piece(reason="stop")), "content_filtered"),
    "stop reason `refusal` (Anthropic)": Row(
        streams(START, *closing("refusal", 1)), "content_filtered", provider="anthropic"
    ),
    "error event in the stream (OpenAI)": Row(streams(piece("he"), error("broken", type="server_error")), "overloaded"),
    "error event with status 429 (vLLM, proxies)": Row(streams(error("slow down", code=429)), "rate_limited"),
    "error event `overloaded_error` (Anthropic)": Row(
        streams(START, anthropic("overloaded_error")), "overloaded", provider="anthropic"
    ),
    "error event `rate_limit_error` (Anthropic)": Row(
        streams(START, anthropic("rate_limit_error")), "rate_limited", provider="anthropic"
    ),
    "error event `invalid_request_error` (Anthropic)": Row(
        streams(START, anthropic("invalid_request_error")), "provider_rejected", provider="anthropic"
    ),
}
ROWS |= {name: Row(says(row.status, row.body, *row.headers), row.code, row.wait_s) for name, row in SAID.items()}
REFUSED = "refuses the connection"


def documented() -> dict[str, tuple[str, bool]]:
    """The document's table: what happens, its code, whether it is retryable."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    rows = [re.fullmatch(r"\| (.+?) \| `(\w+)` \| (yes|no)\b.*\|", line) for line in lines]
    return {row[1]: (row[2], row[3] == "yes") for row in rows if row}


def test_the_document_and_the_tests_have_the_same_rows() -> None:
    table = documented()
    assert {name: code for name, (code, _) in table.items()} == {
        **{name: row.code for name, row in ROWS.items()},
        REFUSED: "connection",
    }


@pytest.mark.parametrize("name", ROWS)
def test_a_failure_ends_as_the_table_says(name: str) -> None:
    row = ROWS[name]
    failure = call(row.provider, row.handler, timeout_s=row.timeout_s).error.failure
    assert (failure.code, failure.retryable) == documented()[name]
    if name in SAID:
        assert failure.again is (SAID[name].status in {408, 409, 425, 429} or SAID[name].status >= 500)
    assert failure.retry_after_s == (None if row.retry_after_s is None else pytest.approx(row.retry_after_s, abs=30))


def test_a_server_that_is_not_there_is_a_connection_error() -> None:
    with closing_socket(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]

    async def unused(call: Call) -> None:
        raise AssertionError(call)

    failure = call("openai", unused, base_url=f"http://127.0.0.1:{port}").error.failure
    assert (failure.code, failure.retryable) == documented()[REFUSED]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("-3", 0.0),
        ("1e9", 86_400.0),
        ("Sat, 01 Jan 2000 00:00:00 GMT", 0.0),
    ],
)
def test_a_time_to_wait_is_a_sane_number_of_seconds(text: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": text}) == seconds


@pytest.mark.parametrize("message", ["Authorization failed.", "the x-api-key header is required", "no Bearer token"])
def test_an_error_that_only_speaks_of_keys_is_kept(message: str) -> None:
    assert scrubbed(ProviderError.of(FailureCode.PROVIDER_AUTH, message), "sk-a").failure.message == message


@pytest.mark.parametrize(
    "echo",
    [
        "you sent sk-a+b/c&d=",
        "you sent sk-a%2Bb%2Fc%26d%3D",
        "you sent sk-a+b/c&amp;d=",
        "Authorization: Bearer of-someone-else",
        '{"authorization": "Bearer sk-a+b/c&d="}',
        "x-api-key: another-key",
        "{'x-api-key': 'another-key'}",
    ],
)
def test_a_key_is_taken_out_of_an_error(echo: str) -> None:
    message = scrubbed(ProviderError.of(FailureCode.PROVIDER_AUTH, echo), "sk-a+b/c&d=").failure.message
    assert "sk-a" not in message
    assert "someone" not in message
    assert "another" not in message
    assert "***" in message


PROMPT = most_tokens(["hi"])
WORST = Usage(PROMPT, REQUEST.max_tokens, estimated=True)
CHARGED: dict[str, tuple[Row, Usage]] = {
    "silent before the head": (Row(hangs, "timeout", timeout_s=0.2), WORST),
    "cut off before the head": (Row(drops, "connection"), WORST),
    "silent after the head": (Row(streams(then="hang"), "timeout", timeout_s=0.2), WORST),
    "cut off after the head": (Row(streams(then="drop"), "connection"), WORST),
    "cut off after its input was counted": (
        Row(streams(START, then="drop"), "connection", provider="anthropic"),
        Usage(60, REQUEST.max_tokens, cached_input_tokens=30, estimated=True),
    ),
    "cut off in its text": (
        Row(streams(START, delta("text_delta", text="hello world"), then="drop"), "connection", provider="anthropic"),
        Usage(60, 4, cached_input_tokens=30, estimated=True),
    ),
    "an error instead of an answer": (Row(says(500, "oops"), "overloaded"), Usage()),
    "an error event instead of output": (Row(streams(error("slow down", code=429)), "rate_limited"), Usage()),
    "an empty body": (Row(says(200), "overloaded"), Usage()),
    "a page of HTML": (Row(says(200, "<html>welcome</html>"), "overloaded"), Usage()),
    "a refusal": (Row(says(400, error("bad")), "provider_rejected"), Usage()),
    "an error whose body never ends": (
        Row(fails_without_end, "timeout", timeout_s=0.2),
        Usage(),
    ),
}


@pytest.mark.parametrize("name", CHARGED)
def test_a_call_that_may_have_been_charged_without_our_knowing_is_booked_as_its_worst_case(name: str) -> None:
    row, usage = CHARGED[name]
    outcome = call(row.provider, row.handler, timeout_s=row.timeout_s)
    assert outcome.error.failure.code == row.code
    assert outcome.meter.usage == usage


def test_a_call_whose_request_was_never_sent_costs_nothing() -> None:
    with closing_socket(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]

    outcome = call("openai", hangs, base_url=f"http://127.0.0.1:{port}")
    assert outcome.error.failure.code == "connection"
    assert outcome.meter.usage == Usage()


def test_hidden_reasoning_that_was_cut_off_is_booked_as_all_that_was_asked_for() -> None:
    """An LLM that was seen to reason without showing it may have reasoned before a text that broke off."""
    meters, seen = [Meter(), Meter()], []

    async def handler(call: Call) -> None:
        seen.append(call)
        await call.begin()
        await call.event(piece("hello"))
        if len(seen) == 1:
            await call.event({**piece(reason="stop"), "usage": USAGE})
            await call.end()
        call.drop()

    async def main() -> None:
        async with serve(handler) as server:
            provider = PROVIDERS["openai"](llm("openai", server.url))
            await provider.generate(REQUEST, meters[0])
            with pytest.raises(ProviderError):
                await provider.generate(REQUEST, meters[1])
            await provider.close()

    asyncio.run(main())
    assert not meters[0].usage.estimated
    assert meters[0].usage.reasoning_tokens
    assert meters[1].usage == WORST


PLACES = [
    "upstream connect error 10.0.0.5:8000 reset",
    "cannot reach http://vllm.internal:8000/v1/chat/completions",
    "Connect call failed ('192.168.4.7', 443)",
    "no route to [fd00::12]:8000",
    "getaddrinfo failed for gpu-box-3.cluster.local",
    "host gpu7:8000 is down",
    "the file /models/llama/weights-00001.gguf is missing",
    "see /home/operator/secrets/key.txt",
    "nothing listens at localhost",
    "HTTPConnectionPool(host='reranker', port=8080): Max retries exceeded",
    "[ERROR: [Errno 28] No space left on device: '/app/backend/uploads/a.wav']",
]


@pytest.mark.parametrize("said", PLACES)
@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_tenants_see_no_address_host_or_path_that_a_provider_names(said: str, status: int) -> None:
    message = call("openai", says(status, error(said))).error.failure.message
    for secret in (
        "10.0",
        "192.168",
        "fd00",
        "vllm",
        "cluster",
        "gpu7",
        "models",
        "operator",
        "localhost",
        "reranker",
        "backend",
    ):
        assert secret not in message


def test_what_a_provider_says_of_the_request_is_kept() -> None:
    message = "messages.3.content: $.items[0] must be a string, at 12:30 of 2026-11-27, see #/properties/a/b, 1.5 > 1.0"
    assert without_places(message) == message
    assert message in call("openai", says(400, error(message))).error.failure.message


def test_a_connection_that_fails_names_its_address_to_the_log_alone() -> None:
    with closing_socket(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    caught = call("openai", hangs, base_url=f"http://127.0.0.1:{port}").error
    assert caught.failure.message == "the provider cannot be reached"
    assert str(port) in caught.detail
