"""The anthropic provider against a real local HTTP server that speaks the Messages API."""

import json

import pytest

from models.pricing import Usage
from tests.workers.providers.calling import REQUEST, call
from tests.workers.providers.scripted import Call, Json
from workers.providers.anthropic import to_wire
from workers.providers.base import Generation, GenerationRequest

START = {
    "type": "message_start",
    "message": {
        "type": "message",
        "usage": {
            "input_tokens": 10,
            "cache_creation_input_tokens": 20,
            "cache_read_input_tokens": 30,
            "output_tokens": 1,
        },
    },
}


async def named(call: Call, event: Json) -> None:
    """Send one event as the Messages API does, with its name beside its data."""
    await call.chunk(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())


def delta(kind: str, **fields: str) -> Json:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": kind, **fields}}


def closing(reason: str, tokens: int) -> list[Json]:
    return [
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": tokens}},
        {"type": "message_stop"},
    ]


async def stream(call: Call, *events: Json) -> None:
    await call.begin()
    for event in events:
        await named(call, event)
    await call.end()


def test_a_request_is_translated() -> None:
    request = GenerationRequest(
        messages=[
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hi"},
            {"role": "developer", "content": "be kind"},
        ],
        max_tokens=5,
        temperature=1.7,
        top_p=0.5,
        top_k=7,
        stop=["END"],
        seed=7,
    )
    assert to_wire(request, "claude") == {
        "model": "claude",
        "system": "be brief\n\nbe kind",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 5,
        "temperature": 1.0,
        "top_p": 0.5,
        "top_k": 7,
        "stop_sequences": ["END"],
        "stream": True,
    }


def test_a_request_of_system_messages_alone_has_a_turn() -> None:
    request = GenerationRequest(messages=[{"role": "system", "content": "say hi"}], max_tokens=5)
    body = to_wire(request, "claude")
    assert body["messages"] == [{"role": "user", "content": "say hi"}]
    assert "system" not in body


def test_a_schema_of_an_object_is_a_tool_and_other_forms_are_asked_for_in_words() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}}
    body = to_wire(GenerationRequest(REQUEST.messages, 5, response_format=form), "claude")
    assert body["tools"] == [{"name": "thing", "description": "Give the answer.", "input_schema": schema}]
    assert body["tool_choice"] == {"type": "tool", "name": "thing"}
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": {"type": "array"}}}
    body = to_wire(GenerationRequest(REQUEST.messages, 5, response_format=form), "claude")
    assert '{"type":"array"}' in body["system"]
    body = to_wire(GenerationRequest(REQUEST.messages, 5, response_format={"type": "json_object"}), "claude")
    assert "JSON object" in body["system"]


def test_a_stream_is_put_together_and_its_usage_is_the_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(call: Call) -> None:
        pieces = [
            delta("thinking_delta", thinking="hm"),
            delta("text_delta", text="hel"),
            delta("text_delta", text="lo"),
        ]
        await stream(call, START, {"type": "ping"}, *pieces, *closing("max_tokens", 7))

    monkeypatch.setenv("SOME_KEY", "sk-ant-secret")
    outcome = call("anthropic", answer, api_key_env="SOME_KEY")
    assert outcome.generation == Generation("hello", "length")
    assert outcome.meter.usage == Usage(60, 7, cached_input_tokens=30)
    assert outcome.meter.first_token_at is not None
    (seen,) = outcome.server.calls
    assert seen.path == "/v1/messages"
    assert seen.headers["x-api-key"] == "sk-ant-secret"
    assert seen.headers["anthropic-version"] == "2023-06-01"


def test_the_input_of_a_tool_is_the_answer() -> None:
    async def answer(call: Call) -> None:
        pieces = [delta("input_json_delta", partial_json='{"a":'), delta("input_json_delta", partial_json=" 1}")]
        await stream(call, START, *pieces, *closing("tool_use", 7))

    assert call("anthropic", answer).generation == Generation('{"a": 1}', "stop")


def test_a_message_in_one_piece_is_understood() -> None:
    async def answer(call: Call) -> None:
        usage = {"input_tokens": 3, "output_tokens": 2}
        blocks = [{"type": "text", "text": "hello"}]
        message = {"type": "message", "content": blocks, "stop_reason": "end_turn", "usage": usage}
        await call.answer(200, json.dumps(message).encode())

    outcome = call("anthropic", answer)
    assert outcome.generation == Generation("hello", "stop")
    assert outcome.meter.usage == Usage(3, 2)


def test_what_was_used_before_an_error_is_counted_and_the_rest_estimated() -> None:
    async def answer(call: Call) -> None:
        error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        await stream(call, START, delta("text_delta", text="hello world"), error)

    outcome = call("anthropic", answer)
    assert outcome.error.failure.code == "overloaded"
    assert outcome.meter.usage == Usage(60, 4, cached_input_tokens=30, estimated=True)


def test_an_error_before_any_output_costs_nothing() -> None:
    async def answer(call: Call) -> None:
        await stream(call, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})

    assert call("anthropic", answer).meter.usage == Usage()


def test_a_refusal_is_a_filtered_answer() -> None:
    async def answer(call: Call) -> None:
        await stream(call, START, *closing("refusal", 1))

    assert call("anthropic", answer).error.failure.code == "content_filtered"
