"""The openai provider against a real local HTTP server."""

import json
from pathlib import Path
from typing import Any

import pytest

from models.pricing import Usage
from models.tokens import most_tokens
from tests.workers.providers.calling import REQUEST, call
from tests.workers.providers.scripted import Call
from workers.providers.base import Generation, GenerationRequest
from workers.providers.openai import to_wire

USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 5},
}
WHOLE = {"choices": [{"message": {"role": "assistant", "content": "hello"}, "finish_reason": "length"}], "usage": USAGE}
COUNTED = Usage(9, 7, cached_input_tokens=4, reasoning_tokens=5)


def piece(text: str | None = None, reason: str | None = None, **delta: object) -> dict[str, Any]:
    """One chunk of a streamed chat completion."""
    said = delta if text is None else {"content": text, **delta}
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": said, "finish_reason": reason}]}


async def streamed(call: Call) -> None:
    """Answer as OpenAI does."""
    await call.begin()
    for event in (piece("", role="assistant"), piece("hel"), piece("lo"), piece(reason="stop")):
        await call.event(event)
    await call.event({"choices": [], "usage": USAGE})
    await call.chunk(b"data: [DONE]\n\n")
    await call.end()


def test_a_request_is_translated() -> None:
    request = GenerationRequest(
        messages=[{"role": "developer", "content": "be brief"}, {"role": "user", "content": "hi"}],
        max_tokens=5,
        temperature=0.0,
        top_p=0.5,
        top_k=7,
        min_p=0.25,
        frequency_penalty=-1.5,
        presence_penalty=0.5,
        stop=["\n"],
        seed=7,
        response_format={"type": "json_object"},
    )
    assert to_wire(request, "their-name") == {
        "model": "their-name",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.25,
        "frequency_penalty": -1.5,
        "presence_penalty": 0.5,
        "stop": ["\n"],
        "seed": 7,
        "response_format": {"type": "json_object"},
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_what_the_caller_left_open_is_left_to_the_server() -> None:
    usage = {"include_usage": True}
    assert to_wire(REQUEST, None) == {
        "messages": REQUEST.messages,
        "max_tokens": 50,
        "stream": True,
        "stream_options": usage,
    }


def test_a_stream_is_put_together_and_its_usage_is_the_providers() -> None:
    outcome = call("openai", streamed)
    assert outcome.generation == Generation("hello", "stop")
    assert outcome.meter.usage == COUNTED
    assert outcome.meter.first_token_at is not None
    assert outcome.server.calls[0].path == "/v1/chat/completions"


def test_a_server_that_does_not_stream_is_understood() -> None:
    async def answer(call: Call) -> None:
        await call.answer(200, json.dumps(WHOLE, indent=1).encode())

    outcome = call("openai", answer)
    assert outcome.generation == Generation("hello", "length")
    assert outcome.meter.usage == COUNTED


def test_a_stream_without_a_count_is_estimated_from_above_and_marked() -> None:
    async def answer(call: Call) -> None:
        await call.begin()
        await call.event(piece("hello world"))
        await call.event(piece(reason="stop"))
        await call.end()

    usage = call("openai", answer).meter.usage
    assert usage == Usage(most_tokens(["hi"]), 4, estimated=True)


def test_zeros_beside_an_answer_are_no_count() -> None:
    zeros = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    usage = call("openai", lambda call: call.answer(200, json.dumps({**WHOLE, "usage": zeros}).encode())).meter.usage
    assert usage == Usage(most_tokens(["hi"]), 2, estimated=True)


def test_an_estimate_of_the_output_is_never_above_what_was_allowed() -> None:
    async def answer(call: Call) -> None:
        await call.begin()
        await call.event(piece("x" * 3000))
        await call.event(piece(reason="length"))
        await call.end()

    assert call("openai", answer).meter.usage.output_tokens == REQUEST.max_tokens


def test_reasoning_is_counted_and_not_shown() -> None:
    async def answer(call: Call) -> None:
        await call.begin()
        await call.event(piece(reasoning_content="I should greet them back"))
        await call.event(piece("hello"))
        await call.event(piece(reason="stop"))
        await call.end()

    outcome = call("openai", answer)
    assert outcome.generation.text == "hello"
    assert outcome.meter.usage.output_tokens == -(-29 // 3)


def test_an_answer_is_kept_when_the_connection_breaks_after_its_end() -> None:
    async def answer(call: Call) -> None:
        await call.begin()
        await call.event(piece("hello", "stop"))
        call.drop()

    outcome = call("openai", answer)
    assert outcome.generation == Generation("hello", "stop")
    assert outcome.meter.usage.estimated


@pytest.mark.parametrize(
    ("message", "missing", "added"),
    [
        ("Unrecognized request argument supplied: stream_options", "stream_options", None),
        (
            "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
            "max_tokens",
            "max_completion_tokens",
        ),
        ("Your organization must be verified: unsupported value 'stream'", "stream", None),
    ],
)
def test_what_a_server_refuses_by_name_is_sent_in_its_own_dialect(
    message: str, missing: str, added: str | None
) -> None:
    async def answer(call: Call) -> None:
        if missing in call.body:
            await call.answer(400, json.dumps({"error": {"message": message}}).encode())
        elif "stream" in call.body:
            await streamed(call)
        else:
            await call.answer(200, json.dumps(WHOLE).encode())

    outcome = call("openai", answer)
    assert outcome.generation.text == "hello"
    refused, accepted = (seen.body for seen in outcome.server.calls)
    assert missing in refused
    assert missing not in accepted
    assert added is None or added in accepted


def test_a_refusal_that_no_dialect_helps_is_the_answer() -> None:
    async def answer(call: Call) -> None:
        await call.answer(400, b'{"error": {"message": "no stream_options, ever"}}')

    outcome = call("openai", answer)
    assert outcome.error.failure.code == "provider_rejected"
    assert len(outcome.server.calls) == 2


def test_the_key_is_a_bearer_token_from_the_environment_or_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-environment")
    file = tmp_path / "key"
    file.write_text("sk-file\n")
    first = call("openai", streamed, api_key_env="SOME_KEY")
    second = call("openai", streamed, api_key_file=str(file))
    seen = [outcome.server.calls[0].headers["authorization"] for outcome in (first, second)]
    assert seen == ["Bearer sk-environment", "Bearer sk-file"]
