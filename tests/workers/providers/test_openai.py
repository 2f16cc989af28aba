"""The openai provider against a real local HTTP server."""

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from models.catalog import LLM
from models.errors import ConfigurationError, FailureCode
from workers.providers.base import Generation, GenerationRequest, Meter, ProviderError
from workers.providers.openai import OpenAIProvider

REQUEST = GenerationRequest(messages=[{"role": "user", "content": "hi"}], max_tokens=5, stop=["\n"], seed=7)
ANSWER = {
    "choices": [{"message": {"role": "assistant", "content": "hello"}, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2},
}


def llm(url: str, **changes: object) -> LLM:
    fields = {
        "tier": "t",
        "provider": "openai",
        "model": "their-name",
        "base_url": url,
        "context_window": 100,
        "input_price": "1",
        "output_price": "2",
        "timeout_s": 1,
        **changes,
    }
    return LLM.model_validate(fields)


def generate(entry: LLM) -> tuple[Generation, Meter]:
    async def main() -> tuple[Generation, Meter]:
        provider, meter = OpenAIProvider(entry, max_connections=4), Meter()
        try:
            return await provider.generate(REQUEST, meter), meter
        finally:
            await provider.close()

    return asyncio.run(main())


def failure(entry: LLM) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        generate(entry)
    return caught.value


def test_a_request_is_translated_and_answered(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Request] = []

    def answer(request: Request) -> Response:
        seen.append(request)
        return Response(json.dumps(ANSWER))

    httpserver.expect_request("/v1/chat/completions", method="POST").respond_with_handler(answer)
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    generation, meter = generate(llm(httpserver.url_for("/v1"), api_key_env="SOME_KEY"))
    assert generation == Generation("hello", "length")
    assert (meter.usage.input_tokens, meter.usage.output_tokens) == (9, 2)
    assert meter.first_token_at is not None
    assert seen[0].headers["authorization"] == "Bearer sk-secret"
    assert seen[0].json == {
        "model": "their-name",
        "messages": REQUEST.messages,
        "max_tokens": 5,
        "stop": ["\n"],
        "seed": 7,
    }


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, {"error": {"message": "bad", "code": None}}, FailureCode.PROVIDER_REJECTED),
        (
            400,
            {"error": {"message": "long", "code": "context_length_exceeded"}},
            FailureCode.CONTEXT_LENGTH_EXCEEDED,
        ),
        (401, {"error": {"message": "who?"}}, FailureCode.PROVIDER_AUTH),
        (404, "not here", FailureCode.PROVIDER_REJECTED),
        (429, {"error": "odd"}, FailureCode.RATE_LIMITED),
        (500, "", FailureCode.OVERLOADED),
        (503, [], FailureCode.OVERLOADED),
        (200, "", FailureCode.OVERLOADED),
        (200, {"choices": []}, FailureCode.OVERLOADED),
        (
            200,
            {"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]},
            FailureCode.CONTENT_FILTERED,
        ),
    ],
)
def test_an_answer_that_is_none_has_a_code(
    httpserver: HTTPServer, status: int, body: object, code: FailureCode
) -> None:
    httpserver.expect_request("/v1/chat/completions").respond_with_json(body, status=status)
    assert failure(llm(httpserver.url_for("/v1"))).failure.code is code


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read(httpserver: HTTPServer, headers: dict[str, str], seconds: float | None) -> None:
    httpserver.expect_request("/v1/chat/completions").respond_with_json({}, status=429, headers=headers)
    assert failure(llm(httpserver.url_for("/v1"))).failure.retry_after_s == seconds


@pytest.fixture
def silent_port() -> Iterator[int]:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


def test_a_server_that_never_answers_is_a_timeout(silent_port: int) -> None:
    entry = llm(f"http://127.0.0.1:{silent_port}/v1", timeout_s=0.3)
    assert failure(entry).failure.code is FailureCode.TIMEOUT


def test_a_closed_port_is_a_connection_error(silent_port: int) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    assert failure(llm(f"http://127.0.0.1:{port}/v1")).failure.code is FailureCode.CONNECTION


def test_a_missing_key_is_the_operators_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="NO_SUCH_KEY"):
        OpenAIProvider(llm("http://127.0.0.1:1/v1", api_key_env="NO_SUCH_KEY"), max_connections=1)
