"""Vectors from an OpenAI-compatible server and from the mock, and answers that are handed on as they come."""

import asyncio
import base64
import json
import struct
from typing import Any

import pytest

from models.errors import FailureCode
from models.pricing import Usage
from models.tokens import most_tokens
from tests.workers.providers.calling import REQUEST, llm
from tests.workers.providers.scripted import Call, Server, serve
from workers.providers.anthropic import AnthropicProvider
from workers.providers.base import Embedding, EmbeddingRequest, Meter, ProviderError
from workers.providers.mock import MockProvider
from workers.providers.openai import OpenAIProvider

TEXTS = EmbeddingRequest(["one", "two"], dimensions=2)
ANSWER = {
    "data": [{"index": 1, "embedding": [3.0, 4.0]}, {"index": 0, "embedding": [1.0, 2.0]}],
    "usage": {"prompt_tokens": 5, "total_tokens": 5},
}


def embed(
    status: int, answer: object, request: EmbeddingRequest = TEXTS
) -> tuple[list[Embedding] | ProviderError, Meter, Server]:
    """Ask a server that gives one answer."""

    async def handler(call: Call) -> None:
        await call.answer(status, answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    async def main() -> tuple[list[Embedding] | ProviderError, Meter, Server]:
        async with serve(handler) as server:
            provider, meter = OpenAIProvider(llm("openai", server.url, embeddings=True)), Meter()
            try:
                return await provider.embed(request, meter), meter, server
            except ProviderError as error:
                return error, meter, server
            finally:
                await provider.close()

    return asyncio.run(main())


def test_vectors_come_in_the_order_of_the_texts() -> None:
    vectors, meter, server = embed(200, ANSWER)
    assert vectors == [[1.0, 2.0], [3.0, 4.0]]
    assert meter.usage == Usage(5, 0)
    assert server.calls[0].path == "/v1/embeddings"
    asked = {"input": ["one", "two"], "model": "their-name", "encoding_format": "float", "dimensions": 2}
    assert server.calls[0].body == asked


def test_what_the_server_does_not_count_is_estimated_from_above() -> None:
    _, meter, _ = embed(200, ANSWER | {"usage": None})
    assert meter.usage == Usage(most_tokens(TEXTS.texts), 0, estimated=True)


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (500, b"not JSON"),
        (200, b""),
        (200, b"<html>welcome</html>"),
        (200, {"error": {"message": "no"}}),
        (200, {"detail": "no"}),
        (200, {"data": []}),
        (200, {"data": [{"error": "no"}, {"error": "no"}]}),
        (200, {"data": None, "usage": {"prompt_tokens": 0, "total_tokens": 0}}),
    ],
)
def test_what_comes_in_place_of_vectors_costs_nothing(status: int, answer: object) -> None:
    error, meter, _ = embed(status, answer)
    assert isinstance(error, ProviderError)
    assert meter.usage == Usage()


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        ({"data": ANSWER["data"][:1]}, Usage(most_tokens(TEXTS.texts), 0, estimated=True)),  # type: ignore[index]
        ({"data": ANSWER["data"][:1], "usage": {"prompt_tokens": 3}}, Usage(3, 0)),  # type: ignore[index]
        ({"error": "too late", "usage": {"total_tokens": 3}}, Usage(3, 0)),
    ],
)
def test_vectors_that_cannot_be_used_are_booked_where_some_came_or_the_server_counted(
    answer: object, usage: Usage
) -> None:
    error, meter, _ = embed(200, answer)
    assert isinstance(error, ProviderError)
    assert meter.usage == usage


def as_base64(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


FLOATS = [[1.0, 2.0], [3.0, 4.0]]
BASE64 = [as_base64(1.0, 2.0), as_base64(3.0, 4.0)]


@pytest.mark.parametrize("wanted", ["float", "base64"])
@pytest.mark.parametrize("sent", [FLOATS, BASE64, [FLOATS[0], BASE64[1]]], ids=["float", "base64", "both"])
def test_vectors_are_given_in_the_form_that_was_asked_for_whatever_the_server_sends(
    wanted: str, sent: list[Embedding]
) -> None:
    """ollama/ollama#6934, huggingface/text-embeddings-inference#288, Lightning-AI/LitServe#741."""
    data = [{"index": index, "embedding": vector} for index, vector in enumerate(sent)]
    request = EmbeddingRequest(TEXTS.texts, base64=wanted == "base64")
    vectors, _, _ = embed(200, {"data": data, "usage": {"prompt_tokens": 1}}, request)
    assert vectors == (BASE64 if wanted == "base64" else FLOATS)


@pytest.mark.parametrize(
    ("indexes", "order"),
    [
        ([1, 0], [1, 0]),
        ([None, None], [0, 1]),
        ([None, 1], [0, 1]),
        ([0, 0], [0, 1]),
        ([2, 1], [1, 0]),
        (["1", "0"], [1, 0]),
    ],
    ids=["out of order", "none", "zero left out (Google)", "all the same", "from one", "as texts"],
)
def test_vectors_are_matched_to_their_texts(indexes: list[object], order: list[int]) -> None:
    """spring-projects/spring-ai#7020, samfoy/pi-session-search#13, pydantic/pydantic-ai#7506."""
    data = [
        {"embedding": vector, **({} if index is None else {"index": index})}
        for index, vector in zip(indexes, FLOATS, strict=True)
    ]
    vectors, _, _ = embed(200, {"data": data})
    assert vectors == [FLOATS[place] for place in order]


@pytest.mark.parametrize(
    "data",
    [
        b'{"data": [{"embedding": [1.0, NaN]}, {"embedding": [1.0, 2.0]}]}',
        {"data": [{"embedding": as_base64(float("nan"), 1.0)}, {"embedding": [1.0, 2.0]}]},
        {"data": [{"embedding": [1.0, None]}, {"embedding": [1.0, 2.0]}]},
        {"data": [{"embedding": []}, {"embedding": []}]},
        {"data": [{"embedding": [1.0]}, {"embedding": [1.0, 2.0]}]},
        {"data": [{"embedding": "no base64!"}, {"embedding": [1.0, 2.0]}]},
        {"data": [{"embedding": [[1.0], [2.0]]}, {"embedding": [1.0, 2.0]}]},
        {"data": [{"embedding": [1e300, 1.0]}, {"embedding": [1.0, 2.0]}]},
        {"data": [{"index": 0, "embedding": [1.0]}, {"index": 7, "embedding": [1.0]}]},
        {"data": {"0": [1.0], "1": [2.0]}},
    ],
)
def test_what_is_no_vector_is_not_given_out(data: object) -> None:
    error, _, _ = embed(200, data, EmbeddingRequest(TEXTS.texts, base64=True))
    assert isinstance(error, ProviderError)
    assert error.failure.code is FailureCode.OVERLOADED


@pytest.mark.parametrize("index", [-1, 2**40, [1], "x"])
def test_an_index_that_is_none_matches_no_vector_to_a_text(index: object) -> None:
    """Vectors of the wrong texts are worse than none."""
    data = [{"index": index, "embedding": [3.0, 4.0]}, {"index": 0, "embedding": [1.0, 2.0]}]
    failure, _, _ = embed(200, {"data": data})
    assert isinstance(failure, ProviderError)


def test_a_count_under_another_name_is_the_servers_count() -> None:
    """Voyage and Jina say total_tokens alone."""
    _, meter, _ = embed(200, ANSWER | {"usage": {"total_tokens": 5}})
    assert meter.usage == Usage(5, 0)


def test_vectors_that_did_not_come_in_time_are_booked_as_an_estimate() -> None:
    async def handler(_: Call) -> None:
        await asyncio.sleep(60)

    async def main() -> Meter:
        async with serve(handler) as server:
            provider, meter = OpenAIProvider(llm("openai", server.url, embeddings=True, timeout_s=0.2)), Meter()
            with pytest.raises(ProviderError):
                await provider.embed(TEXTS, meter)
            await provider.close()
            return meter

    assert asyncio.run(main()).usage == Usage(most_tokens(TEXTS.texts), 0, estimated=True)


@pytest.mark.parametrize(
    ("status", "answer", "code"),
    [
        (400, {"error": {"message": "dimensions?"}}, FailureCode.PROVIDER_REJECTED),
        (401, {}, FailureCode.PROVIDER_AUTH),
        (429, {}, FailureCode.RATE_LIMITED),
        (200, b"<html>", FailureCode.OVERLOADED),
        (200, {"data": ANSWER["data"][:1]}, FailureCode.OVERLOADED),  # type: ignore[index]  # a list
        (200, {"data": [{"embedding": "AAA="}] * 2}, FailureCode.OVERLOADED),
        (200, {"data": [1, 2]}, FailureCode.OVERLOADED),
    ],
)
def test_other_answers_are_failures(status: int, answer: Any, code: FailureCode) -> None:
    error, _, _ = embed(status, answer)
    assert isinstance(error, ProviderError)
    assert error.failure.code is code


def test_the_mocks_vectors_depend_on_the_text_alone_in_either_form() -> None:
    async def main(request: EmbeddingRequest) -> list[Embedding]:
        return await MockProvider(llm("mock", "", embeddings=True)).embed(request, Meter())

    plain = asyncio.run(main(TEXTS))
    assert plain == asyncio.run(main(TEXTS))
    assert plain[0] != plain[1]
    encoded = asyncio.run(main(EmbeddingRequest(TEXTS.texts, base64=True, dimensions=2)))
    assert struct.unpack("<2f", base64.b64decode(str(encoded[0]))) == pytest.approx(plain[0])


def test_an_llm_without_embeddings_refuses() -> None:
    async def main() -> None:
        provider = AnthropicProvider(llm("anthropic", "http://127.0.0.1:1"))
        try:
            await provider.embed(TEXTS, Meter())
        finally:
            await provider.close()

    with pytest.raises(ProviderError) as caught:
        asyncio.run(main())
    assert caught.value.failure.code is FailureCode.PROVIDER_REJECTED


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_an_answer_is_handed_on_piece_by_piece_as_it_comes(kind: str) -> None:
    """The second piece is sent only after the first was handed on."""

    async def main() -> tuple[list[str], str]:
        handed_on: list[str] = []
        first = asyncio.Event()

        def take(text: str) -> None:
            handed_on.append(text)
            first.set()

        async def handler(call: Call) -> None:
            await call.begin()
            await call.event(_delta(kind, "hel\0"))
            await first.wait()
            await call.event(_delta(kind, "lo"))
            for event in _ends(kind):
                await call.event(event)
            await call.end()

        async with serve(handler) as server:
            made = (OpenAIProvider if kind == "openai" else AnthropicProvider)(llm(kind, server.url))
            try:
                generation = await made.generate(REQUEST, Meter(take))
            finally:
                await made.close()
        return handed_on, generation.text

    assert asyncio.run(main()) == (["hel", "lo"], "hel\0lo")


def _delta(kind: str, text: str) -> dict[str, Any]:
    if kind == "openai":
        return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
    return {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}}


def _ends(kind: str) -> list[dict[str, Any]]:
    if kind == "openai":
        return [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]
    return [{"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, {"type": "message_stop"}]
