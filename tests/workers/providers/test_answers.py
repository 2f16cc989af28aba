"""What providers answer, in every form that the tables of the readers have, against a real server.

Each row of a table is a test; beside them stand forms that users of similar systems reported, with the thread's name.
"""

import gzip
import json
import zlib
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.pricing import Usage
from models.tokens import most_tokens
from tests.workers.providers.calling import REQUEST, Outcome, call
from tests.workers.providers.scripted import Call
from tests.workers.providers.test_anthropic import START, closing, delta
from tests.workers.providers.test_openai import piece
from workers.providers.anthropic import AnthropicTranscript
from workers.providers.base import Generation, Meter, ProviderError
from workers.providers.contentparts import PART_TYPES, REASONING_FIELDS, Kind, PartType
from workers.providers.errorbodies import ERROR_FORMS
from workers.providers.finishreasons import NOT_SAID, REASONS, Finish, FinishReason
from workers.providers.http import EventReader
from workers.providers.jsontext import TextJoiner
from workers.providers.openai import OpenAITranscript
from workers.providers.usagecounts import CACHED, INPUT, OUTPUT, REASONING, USAGE_PLACES, UsageField

Json = dict[str, Any]  # Any: JSON
Handler = Callable[[Call], Awaitable[None]]
INPUT_TOKENS = most_tokens(["hi"])
DONE = b"data: [DONE]\n\n"


def says(body: object, *headers: str) -> Handler:
    """A whole answer of status 200."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda call: call.answer(200, content, headers)


def sends(*chunks: bytes | Json, then: str = "end") -> Handler:
    """A stream of these events or bytes."""

    async def handler(call: Call) -> None:
        await call.begin()
        for chunk in chunks:
            await (call.chunk(chunk) if isinstance(chunk, bytes) else call.event(chunk))
        await call.end()

    return handler


def completion(message: Json | None = None, reason: object = "stop", **fields: object) -> Json:
    """A chat completion."""
    return {"choices": [{"index": 0, "message": message or {"content": "hello"}, "finish_reason": reason}], **fields}


def code_of(outcome: Outcome) -> str:
    return outcome.error.failure.code.value


# Ends


EXPECTED = {Finish.FILTERED: "content_filtered", Finish.FAILED: "overloaded"}


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.word)
def test_a_finish_reason_ends_an_answer_as_the_table_says(reason: FinishReason) -> None:
    for word in (reason.word, reason.word.upper(), f"FINISH_REASON_{reason.word.upper()}"):
        outcome = call("openai", sends(piece("hel"), piece("lo", word), DONE))
        if code := EXPECTED.get(reason.finish):
            assert code_of(outcome) == code
            assert outcome.meter.usage == Usage(INPUT_TOKENS, 2, estimated=True)  # the text is paid for
        else:
            assert outcome.generation == Generation("hello", "length" if reason.finish is Finish.LENGTH else "stop")


@pytest.mark.parametrize(
    "reason", [reason for reason in REASONS if "Anthropic" in reason.said_by], ids=lambda reason: reason.word
)
def test_a_stop_reason_of_anthropic_ends_a_message_as_the_table_says(reason: FinishReason) -> None:
    outcome = call("anthropic", sends(START, delta("text_delta", text="hello"), *closing(reason.word, 7)))
    if code := EXPECTED.get(reason.finish):
        assert code_of(outcome) == code
    else:
        assert outcome.generation == Generation("hello", "length" if reason.finish is Finish.LENGTH else "stop")
    assert outcome.meter.usage == Usage(60, 7, cached_input_tokens=30)


@pytest.mark.parametrize("word", [*NOT_SAID, None, "NULL"])
def test_a_word_that_says_nothing_is_no_end(word: str | None) -> None:
    """ollama/ollama#4357, sgl-project/sglang#3912: an empty text in every chunk."""
    chunks = [piece("hel", word), piece("lo", word)]
    assert call("openai", sends(*chunks, DONE)).generation == Generation("hello", "stop")
    assert code_of(call("openai", sends(*chunks))) == "connection"


ROLE: Json = {"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]}
NO_ANSWERS: dict[str, Handler] = {
    "[DONE] alone (vllm-project/vllm#40986)": sends(DONE),
    "a role and [DONE]": sends(ROLE, DONE),
    "comments and [DONE]": sends(b": ping\n\n", DONE),
    "a call of a tool, which nobody offered (agentjido/req_llm#944)": sends(
        piece(reason="tool_calls", tool_calls=None), DONE
    ),
    "a finish reason that nobody knows, and no text": sends(piece(reason="banana"), DONE),
    "zeros in every field (router-for-me/CLIProxyAPI#2190)": says(
        {"id": "", "choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}}
    ),
    "no choices": says({"choices": None}),
    "a message without content and end": says(completion({"role": "", "content": ""}, "")),
    "an error as the end (openclaw's and OpenRouter's)": sends(piece(reason="error"), DONE),
    "an error in the choice": says(
        {
            "choices": [
                {
                    "error": {"code": 502, "message": "up"},
                    "finish_reason": "error",
                    "message": {"role": "assistant", "content": ""},
                }
            ]
        }
    ),
    "an empty body": says(b""),
    "blanks": says(b" \r\n\r\n "),
    "a page of HTML": says(b"<!doctype html><p>Sign in to the proxy</p>", "content-type: text/html"),
    "a page of HTML as a stream of events": sends(b"<html>\n<body>busy</body>\n\n"),
    "a word": says(b"OK"),
    "a JSON text": says(b'"hello"'),
    "a number": says(b"42"),
    "an empty list": says([]),
    "a list of numbers": says([1]),
    "an empty object": says({}),
    "half a document": says(b'{"choices": [{"message": {"content": "hel'),
    "gzip of nothing": says(gzip.compress(b"")),
    "gzip of a page": says(gzip.compress(b"<html></html>"), "content-encoding: gzip"),
}


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_what_is_no_answer_is_no_completed_job_and_costs_nothing(name: str) -> None:
    """apache/rocketmq-dashboard#2178, kubernetes-sigs/inference-perf#744, vaadin/flow-components#9195."""
    outcome = call("openai", NO_ANSWERS[name])
    assert code_of(outcome) == "overloaded"
    assert outcome.meter.usage == Usage()


@pytest.mark.parametrize(
    "handler",
    [
        sends(DONE),
        sends({"type": "message_stop"}),
        sends({"type": "message_start", "message": {"usage": {"input_tokens": 0}}}, {"type": "message_stop"}),
        says({"type": "message", "content": []}),
        says({"type": "message", "content": None, "stop_reason": "end_turn"}),
        says({"choices": []}),
        says(b"<html>"),
    ],
)
def test_what_is_no_message_of_anthropic_costs_nothing(handler: Handler) -> None:
    outcome = call("anthropic", handler)
    assert code_of(outcome) == "overloaded"
    assert outcome.meter.usage == Usage()


def test_the_log_has_how_an_answer_begins_that_is_none_and_the_tenant_has_not() -> None:
    error = call("openai", says(b"<html>proxy.internal says no</html>")).error
    assert "proxy.internal says no" in error.detail
    assert "proxy" not in error.failure.message


@pytest.mark.parametrize(
    ("chunks", "finish"),
    [
        ([piece("hel", "stop"), piece("lo", "stop")], "stop"),
        ([piece("hel", "stop"), piece("lo", "length")], "length"),
        ([piece("hel", "length"), piece("lo", "stop")], "length"),
    ],
    ids=["in every chunk (lhenault/simpleAI#39)", "too early (PawanOsman/OpenCursor#88)", "the worse one holds"],
)
def test_text_after_a_finish_reason_is_part_of_the_answer(chunks: list[Json], finish: str) -> None:
    assert call("openai", sends(*chunks, DONE)).generation == Generation("hello", finish)


@pytest.mark.parametrize(
    ("reason", "native", "expected"),
    [
        ("stop", "STOP", "stop"),
        ("stop", "MAX_TOKENS", "length"),
        ("stop", "completed", "stop"),
        (None, "max_output_tokens", "length"),
        ("stop", "SAFETY", "content_filtered"),
        ("error", "MALFORMED_FUNCTION_CALL", "overloaded"),
    ],
)
def test_openrouters_native_finish_reason_counts_too(reason: str | None, native: str, expected: str) -> None:
    """mozilla-ai/any-llm#1202, envoyproxy/ai-gateway#2118: the vendor's own word is lost on the way."""
    choice = {"index": 0, "delta": {"content": "hello"}, "finish_reason": reason, "native_finish_reason": native}
    outcome = call("openai", sends({"choices": [choice]}, DONE))
    assert (outcome.generation.finish_reason if expected in {"stop", "length"} else code_of(outcome)) == expected


@pytest.mark.parametrize("reason", [{"type": "length", "length": 5}, {"type": "LENGTH"}])
def test_a_finish_reason_may_be_an_object(reason: Json) -> None:
    assert call("openai", says(completion(reason=reason))).generation.finish_reason == "length"


def test_an_answer_in_one_piece_needs_no_finish_reason() -> None:
    """openai/openai-openapi#20."""
    assert call("openai", says(completion(reason=None))).generation == Generation("hello", "stop")


def test_an_answer_of_no_text_that_ends_is_an_answer() -> None:
    """NousResearch/hermes-agent#3956: a model may say nothing."""
    usage = {"prompt_tokens": 9, "completion_tokens": 1}
    outcome = call("openai", says(completion({"content": ""}, usage=usage)))
    assert outcome.generation == Generation("", "stop")
    assert outcome.meter.usage == Usage(9, 1)


def test_what_follows_the_end_is_not_read() -> None:
    end = delta("text_delta", text="hello"), *closing("end_turn", 7)
    assert call("anthropic", sends(START, *end, DONE)).generation.text == "hello"
    joined = b"data: " + json.dumps(piece("hello", "stop")).encode() + b"\n\n" + DONE + b"data: {broken\n\n"
    assert call("openai", sends(joined)).generation.text == "hello"


# Errors inside a 200

ERRORS: dict[str, list[tuple[object, str]]] = {
    '`{"error": {...}}`, `{"error": "..."}`': [
        ({"error": {"message": "no", "type": "server_error"}}, "overloaded"),
        ({"error": {"message": "slow down", "code": 429}}, "rate_limited"),
        ({"error": {"message": "slow down", "code": "429"}}, "rate_limited"),
        ({"error": "quota exceeded"}, "overloaded"),
        ({"error": "no", "error_type": "overloaded"}, "overloaded"),
        ({"error": {"error": {"message": "pay", "code": "insufficient_quota"}}}, "provider_auth"),
        ({"id": "x", "error": {"code": 502, "message": "gone"}, "choices": [{"delta": {}}]}, "overloaded"),
        ({"type": "error", "error": {"type": "rate_limit_error", "message": "no"}}, "rate_limited"),
    ],
    '`{"type": "error", "message"}`, `{"object": "error", "message"}`': [
        ({"type": "error", "message": "no"}, "overloaded"),
        ({"object": "error", "message": "no", "type": "BadRequestError", "code": 400}, "provider_rejected"),
    ],
    '`{"errors": [...]}`': [({"success": False, "errors": [{"code": 10000, "message": "no"}]}, "overloaded")],
    '`{"detail": ...}`': [
        ({"detail": "Internal error"}, "overloaded"),
        ({"detail": [{"loc": ["body"], "msg": "bad"}]}, "overloaded"),
        ({"type": "about:blank", "title": "no", "status": 503, "detail": "no"}, "overloaded"),
    ],
    '`{"status": 429, "message"}`, `{"status": "error", "message"}`': [
        ({"status": 429, "message": "slow down"}, "rate_limited"),
        ({"status": "429", "message": "slow down"}, "rate_limited"),
        ({"status": "error", "message": "no such engine"}, "overloaded"),
        ({"status": "failed", "msg": "no such engine"}, "overloaded"),
    ],
    '`{"base_resp": {"status_code", "status_msg"}}`': [
        ({"choices": None, "base_resp": {"status_code": 1002, "status_msg": "slow down"}}, "rate_limited"),
        ({"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}, "provider_auth"),
        ({"base_resp": {"status_code": 1000, "status_msg": "unknown"}}, "overloaded"),
    ],
    '`{"code", "message"}`, `{"error_code", "error_msg"}`': [
        ({"code": 401, "message": "no key"}, "provider_auth"),
        ({"code": "Throttling", "message": "no", "request_id": "r"}, "overloaded"),
        ({"error_code": 336501, "error_msg": "no"}, "overloaded"),
    ],
    '`{"success": false, "msg"}`': [({"success": False, "msg": "no"}, "overloaded")],
}


def test_every_form_of_an_error_has_an_example() -> None:
    assert set(ERRORS) == {form.form for form in ERROR_FORMS}


@pytest.mark.parametrize("way", ["whole", "list", "stream", "named", "after text"])
@pytest.mark.parametrize(
    ("document", "code"), [row for rows in ERRORS.values() for row in rows], ids=lambda value: str(value)[:60]
)
def test_an_error_inside_a_200_is_an_error(document: Json, code: str, way: str) -> None:
    """ggml-org/llama.cpp#14566, BerriAI/litellm#2180, sgl-project/sglang#20027; a list is Google's."""
    named = b"event: error\ndata: " + json.dumps(document).encode() + b"\n\n"
    handlers = {
        "whole": says(document),
        "list": says([document]),
        "stream": sends(document, DONE),
        "named": sends(named, DONE),
        "after text": sends(piece("hello"), document, DONE),
    }
    outcome = call("openai", handlers[way])
    assert code_of(outcome) == code
    assert outcome.meter.usage == (Usage(INPUT_TOKENS, 2, estimated=True) if way == "after text" else Usage())


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (b'event: error\ndata: {"code": 400, "details": "logprobs of 21"}\n\n', "provider_rejected"),
        (b'event:error\n:HTTP_STATUS/429\ndata:{"code":429,"message":"slow down"}\n\n', "rate_limited"),
        (b"event: error\ndata: Internal Network Failure\n\n", "overloaded"),
        (b"event: error\n\n", "overloaded"),
        (b'event: error\ndata: {"code": 429,\ndata: "message": "slow down"}\n\n', "rate_limited"),
        (b'error: {"code": 429, "message": "slow down"}\n\n', "rate_limited"),
        (b"data: Internal Server Error\n\n", "overloaded"),
        (b"data: [1]\n\n", "overloaded"),
    ],
    ids=["guardrails-orchestrator#436", "DashScope", "octos#13", "no data", "term-llm#454", "llama-server", "", "list"],
)
def test_an_error_event_is_an_error_whatever_its_data(event: bytes, code: str) -> None:
    outcome = call("openai", sends(event, DONE))
    assert code_of(outcome) == code
    assert outcome.meter.usage == Usage()


@pytest.mark.parametrize(
    "extra",
    [
        {"error": None},
        {"error": ""},
        {"error": {}},
        {"error": {"message": "", "type": "", "param": "", "code": None}},
        {"error": {"code": 0, "message": "success"}},
        {"base_resp": {"status_code": 0, "status_msg": ""}},
        {"code": 200, "message": "ok"},
        {"prompt_filter_results": [{"content_filter_results": {"error": {"code": "x", "message": "did not run"}}}]},
    ],
)
def test_a_field_for_errors_that_says_nothing_is_no_error(extra: Json) -> None:
    """Gateways of the one-api family have an empty error object in every good answer."""
    assert call("openai", says({**completion(), **extra})).generation.text == "hello"
    assert call("openai", sends({**piece("hello", "stop"), **extra}, DONE)).generation.text == "hello"


@pytest.mark.parametrize(
    "event",
    [
        b'event: hermes.tool.progress\ndata: {"tool": "search", "status": "running", "detail": "page 2"}\n\n',
        b'data: {"type": "ping"}\n\n',
        b'data: {"choices": []}\n\n',
        b"data: null\n\n",
        b": OPENROUTER PROCESSING\n\n",
        b"retry: 3000\n\n",
        b"id: 7\nevent: message\n\n",
    ],
)
def test_a_servers_own_events_are_passed_over(event: bytes) -> None:
    """anomalyco/opencode#38106, janhq/jan#8392, openai/openai-python#3833."""
    assert (
        call("openai", sends(event, piece("hel"), event, piece("lo", "stop"), event, DONE)).generation.text == "hello"
    )


def test_a_time_out_that_an_error_speaks_of_costs_nothing_before_output() -> None:
    outcome = call("openai", sends({"error": {"code": 504, "message": "upstream timed out"}}))
    assert code_of(outcome) == "timeout"
    assert outcome.meter.usage == Usage()


def test_what_was_used_before_an_error_is_booked_as_the_provider_counts_it() -> None:
    error = {"error": {"code": 502, "message": "gone"}, "usage": {"prompt_tokens": 9, "completion_tokens": 4}}
    outcome = call("openai", sends(piece("hello"), error))
    assert code_of(outcome) == "overloaded"
    assert outcome.meter.usage == Usage(9, 4)


# Parts of a message


def as_value(text: str, nested: bool) -> object:
    return [{"type": "text", "text": text}] if nested else text


@pytest.mark.parametrize("nested", [False, True], ids=["text", "list"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("part", PART_TYPES, ids=lambda part: f"{part.name}-{part.field}")
def test_content_may_be_a_list_of_parts(part: PartType, streamed: bool, nested: bool) -> None:
    """spring-projects/spring-ai#5020, braintrust-sdk-javascript#1857, RooCodeInc/Roo-Code#7451."""
    parts = [{"type": part.name, part.field: as_value("twelve chars", nested)}, {"type": "reference", "ids": [1]}]
    message = {"role": "assistant", "content": [*parts, {"type": "text", "text": "hello"}]}
    sent = sends({"choices": [{"delta": message}]}, piece(reason="stop")) if streamed else says(completion(message))
    outcome = call("openai", sent)
    if part.kind is Kind.REFUSAL:
        assert code_of(outcome) == "content_filtered"
    else:
        assert outcome.generation.text == ("twelve charshello" if part.kind is Kind.TEXT else "hello")
    assert outcome.meter.usage.output_tokens == 6


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "hello"}],
        [{"text": "hello"}],
        ["hel", "lo"],
        {"type": "text", "text": "hello"},
        [{"type": "text", "text": {"value": "hello", "annotations": []}}],
        [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "hello"}],
    ],
)
def test_content_may_have_any_form_that_has_the_text(content: object) -> None:
    assert call("openai", says(completion({"content": content}))).generation.text == "hello"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"a": {"b": None}}, '{"a":{"b":null}}'),
        ([{"a": 1}, {"a": 2}], '[{"a":1},{"a":2}]'),
        ([1, 2], "[1,2]"),
        (5, "5"),
        (0, "0"),
        ({}, ""),
        (False, ""),
    ],
)
def test_an_answer_that_a_server_parsed_is_its_json_again(content: object, text: str) -> None:
    """Cloudflare's Workers AI and gateways with a mode for JSON answer with the object and not with its text."""
    assert call("openai", says(completion({"content": content}))).generation.text == text


@pytest.mark.parametrize("mark", ['"[DONE]"', '"done"', "[DONE] "])
def test_an_odd_mark_after_the_end_loses_no_answer(mark: str) -> None:
    outcome = call("openai", sends(piece("hello", "stop"), f"data: {mark}\n\n".encode()))
    assert outcome.generation == Generation("hello", "stop")


def test_an_error_after_the_end_of_an_answer_loses_no_answer() -> None:
    """A gateway whose own accounts fail says so behind an answer that is complete and paid for."""
    late = {"error": {"message": "usage could not be recorded", "code": 500}}
    assert call("openai", sends(piece("hello", "stop"), late, DONE)).generation == Generation("hello", "stop")
    assert code_of(call("openai", sends(piece("hello"), late, DONE))) == "overloaded"


@pytest.mark.parametrize(
    ("word", "code"),
    [("contentFilter", "content_filtered"), ("ContentFiltered", "content_filtered"), ("maxTokens", "length")],
)
def test_a_finish_reason_may_be_written_in_capitals_within(word: str, code: str) -> None:
    outcome = call("openai", sends(piece("hello", word), DONE))
    assert (outcome.generation.finish_reason if code == "length" else code_of(outcome)) == code


@pytest.mark.parametrize("within", ["content", "reasoning", "error"])
def test_nesting_without_end_is_no_answer(within: str) -> None:
    deep: object = "x"
    for _ in range(900):
        deep = [deep] if within != "error" else {"error": deep}
    document = {"error": deep} if within == "error" else completion({within: deep}, None)
    assert code_of(call("openai", says(document))) == "overloaded"


@pytest.mark.parametrize(
    "choice",
    [
        {"delta": {"content": "hello"}, "finish_reason": "stop"},
        {"message": {"content": "hello"}, "finish_reason": "stop"},
        {"text": "hello", "finish_reason": "stop"},
    ],
    ids=["delta", "message", "text"],
)
def test_a_text_may_be_where_the_other_kind_of_answer_has_it(choice: Json) -> None:
    assert call("openai", says({"choices": [choice]})).generation.text == "hello"
    assert call("openai", sends({"choices": [choice]}, DONE)).generation.text == "hello"


def test_a_message_beside_its_pieces_is_not_read_twice() -> None:
    """Perplexity repeats the whole message so far beside each piece."""
    chunks: list[Json] = [
        {"choices": [{"delta": {"content": "hel"}, "message": {"content": "hel"}}]},
        {"choices": [{"delta": {"content": "lo"}, "message": {"content": "hello"}, "finish_reason": "stop"}]},
    ]
    assert call("openai", sends(*chunks, DONE)).generation.text == "hello"


@pytest.mark.parametrize("field", [field.name for field in REASONING_FIELDS])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_reasoning_is_counted_in_each_of_its_places_and_not_shown(field: str, streamed: bool) -> None:
    parts = [{"type": "reasoning.text", "text": "twelve chars"}, {"type": "reasoning.encrypted", "data": "xxxxxxxxx"}]
    said = {field: "twelve chars" if field not in {"reasoning_details", "thinking_blocks"} else parts}
    message = {"content": "hello", **said}
    sent = sends({"choices": [{"delta": message}]}, piece(reason="stop")) if streamed else says(completion(message))
    outcome = call("openai", sent)
    assert outcome.generation.text == "hello"
    assert outcome.meter.usage.output_tokens == 6


@pytest.mark.parametrize(
    "said",
    [
        {"reasoning": "twelve chars", "reasoning_details": [{"type": "reasoning.text", "text": "twelve chars"}]},
        {"reasoning_content": "twelve chars", "reasoning": "twelve chars"},
        {"reasoning_content": "", "reasoning": "twelve chars"},
        {"reasoning_content": None, "reasoning": "twelve chars", "refusal": None, "tool_calls": []},
    ],
)
def test_reasoning_that_is_said_twice_is_counted_once(said: Json) -> None:
    assert call("openai", says(completion({"content": "hello", **said}))).meter.usage.output_tokens == 6


def test_googles_thoughts_are_reasoning() -> None:
    thought = {"content": "<thought>hm", "extra_content": {"google": {"thought": True}}}
    outcome = call("openai", sends({"choices": [{"delta": thought}]}, piece("hello", "stop"), DONE))
    assert outcome.generation.text == "hello"
    assert outcome.meter.usage.output_tokens == -(-16 // 3)


def test_a_think_tag_in_the_text_stays_there() -> None:
    text = "<think>hm</think>hello"
    assert call("openai", says(completion({"content": text}))).generation.text == text


def test_a_call_of_a_tool_that_nobody_offered_is_paid_and_is_no_answer() -> None:
    calls = [{"index": 0, "function": {"name": "search", "arguments": '{"q": "abc"}'}}]
    outcome = call("openai", says(completion({"content": None, "tool_calls": calls}, "tool_calls")))
    assert code_of(outcome) == "overloaded"
    assert outcome.meter.usage == Usage(INPUT_TOKENS, 4, estimated=True)


@pytest.mark.parametrize("at_start", [{}, {"a": 1}], ids=["empty", "whole at the start of the block"])
def test_the_input_of_a_tool_without_pieces_is_the_answer(at_start: Json) -> None:
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "input": at_start}}
    nothing = delta("input_json_delta", partial_json="")
    outcome = call("anthropic", sends(START, block, nothing, *closing("tool_use", 7)))
    assert json.loads(outcome.generation.text) == at_start


# Usage


def nested(path: tuple[str, ...], count: object) -> Json:
    value: object = count
    for name in reversed(path):
        value = {name: value}
    assert isinstance(value, dict)
    return value


BOTH = {"prompt_tokens": 100, "completion_tokens": 50}


@pytest.mark.parametrize("field", CACHED, ids=lambda field: ".".join(field.path))
def test_cached_tokens_are_found_in_each_of_their_places(field: UsageField) -> None:
    """genai-io/gen-code#234, assafelovic/gpt-researcher#2065, continuedev/continue#13104."""
    usage = call("openai", says(completion(usage=BOTH | nested(field.path, 80)))).meter.usage
    assert usage == Usage(100, 50, cached_input_tokens=80)


@pytest.mark.parametrize("field", REASONING, ids=lambda field: ".".join(field.path))
def test_reasoning_tokens_are_found_in_each_of_their_places(field: UsageField) -> None:
    usage = call("openai", says(completion(usage=BOTH | nested(field.path, 20)))).meter.usage
    assert usage == Usage(100, 50, reasoning_tokens=20)


@pytest.mark.parametrize("output", OUTPUT, ids=lambda field: field.path[0])
@pytest.mark.parametrize("prompt", INPUT, ids=lambda field: field.path[0])
def test_counts_have_two_names_each(prompt: UsageField, output: UsageField) -> None:
    usage = {prompt.path[0]: 9, output.path[0]: 7}
    assert call("openai", says(completion(usage=usage))).meter.usage == Usage(9, 7)


@pytest.mark.parametrize("place", USAGE_PLACES, ids=lambda place: ".".join(place.path))
def test_the_usage_object_is_found_in_each_of_its_places(place: UsageField) -> None:
    """earendil-works/pi#2017 (Moonshot), Bike4Mind/bike4mind#1089."""
    last = piece(reason="stop")
    if place.path[0] == "choices[0]":
        last["choices"][0]["usage"] = BOTH
    else:
        last |= nested(place.path, BOTH)
    assert call("openai", sends(piece("hello"), last, DONE)).meter.usage == Usage(100, 50)


COUNTS: dict[str, tuple[Json, Usage]] = {
    "reasoning beside, counted (xAI; vercel/ai#12425)": (
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 115,
            "completion_tokens_details": {"reasoning_tokens": 100},
        },
        Usage(10, 105, reasoning_tokens=100),
    ),
    "reasoning beside, not counted (Google; mozilla-ai/any-llm#1290)": (
        {"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 623},
        Usage(20, 603, reasoning_tokens=405),
    ),
    "reasoning beside, without a total": (
        {"prompt_tokens": 10, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 100}},
        Usage(10, 105, reasoning_tokens=100),
    ),
    "reasoning among (OpenAI; promptfoo/promptfoo#9507)": (
        {
            "prompt_tokens": 500,
            "completion_tokens": 500,
            "total_tokens": 1000,
            "completion_tokens_details": {"reasoning_tokens": 200},
        },
        Usage(500, 500, reasoning_tokens=200),
    ),
    "cached among (BerriAI/litellm#15945)": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 9,
            "total_tokens": 109,
            "prompt_tokens_details": {"cached_tokens": 80},
        },
        Usage(100, 9, cached_input_tokens=80),
    ),
    "cached beside, by the total": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 9,
            "total_tokens": 189,
            "prompt_tokens_details": {"cached_tokens": 80},
        },
        Usage(180, 9, cached_input_tokens=80),
    ),
    "cached beside, more than the prompt": (
        {"prompt_tokens": 10, "completion_tokens": 9, "cache_read_input_tokens": 80, "cache_creation_input_tokens": 5},
        Usage(95, 9, cached_input_tokens=80),
    ),
    "both beside": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 9,
            "total_tokens": 209,
            "prompt_tokens_details": {"cached_tokens": 80},
            "completion_tokens_details": {"reasoning_tokens": 20},
        },
        Usage(180, 29, cached_input_tokens=80, reasoning_tokens=20),
    ),
    "Anthropic's names (future-agi/future-agi#1122)": (
        {
            "input_tokens": 10,
            "output_tokens": 9,
            "cache_read_input_tokens": 80,
            "cache_creation_input_tokens": 5,
        },
        Usage(95, 9, cached_input_tokens=80),
    ),
    "DeepSeek's cache": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 9,
            "total_tokens": 109,
            "prompt_cache_hit_tokens": 80,
            "prompt_cache_miss_tokens": 20,
        },
        Usage(100, 9, cached_input_tokens=80),
    ),
    "the completion is what the total leaves": ({"prompt_tokens": 10, "total_tokens": 19}, Usage(10, 9)),
    "the prompt is what the total leaves": ({"completion_tokens": 9, "total_tokens": 19}, Usage(10, 9)),
    "texts": ({"prompt_tokens": "10", "completion_tokens": "9"}, Usage(10, 9)),
    "fractions (philschmid/easyllm#40, BerriAI/litellm#28024)": (
        {"prompt_tokens": 10.0, "completion_tokens": 8.25, "total_tokens": 18.25},
        Usage(10, 9),
    ),
    "details that are lists (langfuse/langfuse#4961)": (
        {"prompt_tokens": 10, "completion_tokens": 9, "prompt_tokens_details": [{"modality": 1, "token_count": 6}]},
        Usage(10, 9),
    ),
    "details that are null": (
        {"prompt_tokens": 10, "completion_tokens": 9, "prompt_tokens_details": None, "completion_tokens_details": None},
        Usage(10, 9),
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_what_a_provider_counted_is_read_rightly(name: str) -> None:
    said, usage = COUNTS[name]
    assert call("openai", says(completion(usage=said))).meter.usage == usage
    assert call("openai", sends(piece("hello", "stop"), {"choices": [], "usage": said}, DONE)).meter.usage == usage


ESTIMATED = Usage(INPUT_TOKENS, 2, estimated=True)


@pytest.mark.parametrize(
    ("said", "usage"),
    [
        (None, ESTIMATED),
        ({}, ESTIMATED),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, ESTIMATED),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 50}, ESTIMATED),
        ({"prompt_tokens": -1, "completion_tokens": -1, "total_tokens": -2}, ESTIMATED),
        ({"prompt_tokens": 2**64 - 1, "completion_tokens": 2**31}, ESTIMATED),
        ({"prompt_tokens": "many", "completion_tokens": True}, ESTIMATED),
        ({"prompt_tokens": 1e400, "completion_tokens": {"value": 7}}, ESTIMATED),
        ({"total_tokens": 50}, ESTIMATED),
        ([1, 2], ESTIMATED),
        ("10", ESTIMATED),
        ({"prompt_tokens": 9, "completion_tokens": 0}, Usage(9, 2, estimated=True)),
        ({"prompt_tokens": 0, "completion_tokens": 4}, Usage(INPUT_TOKENS, 4, estimated=True)),
    ],
    ids=str,
)
def test_what_cannot_be_a_count_is_none(said: object, usage: Usage) -> None:
    """MiXaiLL76/auto_ai_router#142, mudler/LocalAI#1609: zeros beside an answer were free."""
    assert call("openai", says(completion(usage=said))).meter.usage == usage


def test_fewer_tokens_than_the_text_must_have_are_no_count() -> None:
    """A count of each chunk instead of the sum: no token of any vocabulary has more than 128 bytes."""
    said = {"prompt_tokens": 9, "completion_tokens": 1}
    usage = call("openai", says(completion({"content": "x" * 129}, usage=said))).meter.usage
    assert usage == Usage(9, 43, estimated=True)


def test_counts_in_every_chunk_are_the_sum_so_far() -> None:
    """camel-ai/camel#4217, open-webui/open-webui#29064, griptape-ai/griptape#2275."""
    chunks = [
        {**piece("word "), "usage": {"prompt_tokens": 9, "completion_tokens": number, "total_tokens": 9 + number}}
        for number in range(1, 6)
    ]
    zeros = {"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}}
    outcome = call("openai", sends(*chunks, piece(reason="stop"), zeros, DONE))
    assert outcome.meter.usage == Usage(9, 5)


@pytest.mark.parametrize(
    ("start", "end", "usage"),
    [
        ({"input_tokens": 25, "output_tokens": 1}, {"output_tokens": 15}, Usage(25, 15)),
        ({"input_tokens": 0}, {"input_tokens": 25, "output_tokens": 15}, Usage(25, 15)),
        ({"input_tokens": 25}, {"input_tokens": 0, "output_tokens": 15}, Usage(25, 15)),
        ({}, {"input_tokens": 25, "output_tokens": 15}, Usage(25, 15)),
        (
            {"input_tokens": 5, "cache_read_input_tokens": 20, "cache_creation_input_tokens": None},
            {"input_tokens": 5, "output_tokens": 15},
            Usage(25, 15, cached_input_tokens=20),
        ),
        (
            {"input_tokens": 5, "cache_read_input_tokens": 20},
            {"input_tokens": 5, "cache_read_input_tokens": 20, "output_tokens": 15},
            Usage(25, 15, cached_input_tokens=20),
        ),
    ],
)
def test_anthropics_counts_are_put_together_from_both_ends(start: Json, end: Json, usage: Usage) -> None:
    """tensorzero/tensorzero#5481, brainlid/langchain#625."""
    first = {"type": "message_start", "message": {"usage": start}}
    last = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": end}
    text = delta("text_delta", text="hello")
    assert call("anthropic", sends(first, text, last, {"type": "message_stop"})).meter.usage == usage


# Bytes

FACE = "\N{GRINNING FACE}"


def raw(content: bytes) -> bytes:
    """A chunk whose content is JSON as it stands here."""
    return b'data: {"choices":[{"delta":{"content":"' + content + b'"}}]}\n\n'


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([rb"\ud83d", rb"\ude00"], FACE),
        ([rb"a\ud83d", rb"\ude00b"], f"a{FACE}b"),
        ([rb"\ud83d\ude00\ud83d", rb"\ude00"], FACE * 2),
        ([rb"\ud83d", rb"x"], "\ufffdx"),
        ([rb"\ud83d"], "\ufffd"),
        ([rb"\ude00"], "\ufffd"),
        ([b"\xf0\x9f", b"\x98\x80"], FACE),
        ([b"\xf0", b"\x9f", b"\x98", b"\x80"], FACE),
        ([b"a\xff b"], "a\ufffd b"),
        ([b"\xe2\x82"], "\ufffd"),
        ([b"a\tb"], "a\tb"),
        ([rb"\ud83d", b"", rb"\ude00"], FACE),
    ],
    ids=str,
)
def test_a_character_may_come_in_two_events(pieces: list[bytes], text: str) -> None:
    """elizaOS/eliza#30904, elie222/rakazo#416, Open-Less/openless#413."""
    outcome = call("openai", sends(*map(raw, pieces), piece(reason="stop"), DONE))
    assert outcome.generation.text == text


@given(st.text(max_size=12), st.lists(st.integers(0, 48), max_size=8))
def test_a_text_is_the_same_however_its_bytes_are_cut_into_pieces(text: str, cuts: list[int]) -> None:
    """Pieces of UTF-8 as they come out of a lenient reader, and halves of surrogate pairs."""
    encoded = text.encode()
    places = [0, *sorted(min(cut, len(encoded)) for cut in cuts), len(encoded)]
    joiner = TextJoiner()
    pieces = [encoded[a:b].decode("utf-8", "surrogateescape") for a, b in pairwise(places)]
    fed = [joiner.feed(piece) for piece in pieces if piece]
    assert "".join(fed) + joiner.end() == text
    joiner = TextJoiner()
    halves = text.encode("utf-16-le", "surrogatepass")
    units = [halves[at : at + 2].decode("utf-16-le", "surrogatepass") for at in range(0, len(halves), 2)]
    fed = [joiner.feed(unit) for unit in units]
    assert "".join(fed) + joiner.end() == text
    "".join(fed).encode()


def test_readers_along_get_only_whole_characters() -> None:
    taken: list[str] = []
    transcript = OpenAITranscript(REQUEST, Meter(taken.append))
    for data in (rb'{"choices":[{"delta":{"content":"a\ud83d"}}]}', rb'{"choices":[{"delta":{"content":"\ude00"}}]}'):
        transcript.event(data)
    assert taken == ["a", FACE]


EVENTS = [piece("h\u00e9"), piece(f"l{FACE}"), piece("lo", "stop")]
DATA = [json.dumps(event, ensure_ascii=False).encode() for event in EVENTS]
STREAMS = {
    "as most servers": b"".join(b"data: %b\n\n" % data for data in DATA) + DONE,
    "with CR LF": b"".join(b"data: %b\r\n\r\n" % data for data in DATA) + b"data: [DONE]\r\n\r\n",
    "with CR": b"".join(b"data: %b\r\r" % data for data in DATA) + b"data: [DONE]\r\r",
    "without a blank after data:": b"".join(b"data:%b\n\n" % data for data in DATA) + b"data:[DONE]\n\n",
    "without an empty line between": b"".join(b"data: %b\n" % data for data in DATA) + b"data: [DONE]\n",
    "with a byte order mark": b"\xef\xbb\xbf" + b"".join(b"data: %b\n\n" % data for data in DATA) + DONE,
    "with empty lines first": b"\n\n\r\n" + b"".join(b"data: %b\n\n" % data for data in DATA) + DONE,
    "with names, ids and comments": b"".join(b": c\nevent: message\nid: 1\ndata: %b\n\n:\n\n" % data for data in DATA)
    + DONE,
    "in several lines": b"".join(b"data: %b\n\n" % data.replace(b", ", b",\ndata: ") for data in DATA) + DONE,
    "without the last empty line": b"".join(b"data: %b\n\n" % data for data in DATA) + b"data: [DONE]",
    "without [DONE]": b"".join(b"data: %b\n\n" % data for data in DATA),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_the_same_wherever_its_bytes_are_cut(name: str) -> None:
    """At every byte, in two and one by one; term-llm#487, alexrudall/ruby-openai#332."""
    stream = STREAMS[name].removeprefix(b"\xef\xbb\xbf")
    for chunks in (*([stream[:cut], stream[cut:]] for cut in range(len(stream))), [bytes([byte]) for byte in stream]):
        reader, transcript = EventReader(), OpenAITranscript(REQUEST, Meter())
        events = [event for chunk in chunks for event in reader.feed(chunk)] + reader.end()
        for event in events:
            transcript.event(event)
        assert transcript.generation() == Generation(f"h\u00e9l{FACE}lo", "stop"), chunks


@pytest.mark.parametrize("name", STREAMS)
def test_every_form_of_a_stream_is_read_from_a_server(name: str) -> None:
    stream = STREAMS[name]
    assert call("openai", says(stream)).generation.text == f"h\u00e9l{FACE}lo"
    each = [stream[at : at + 1] for at in range(len(stream))]
    assert call("openai", sends(*each)).generation.text == f"h\u00e9l{FACE}lo"


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf" + json.dumps(completion()).encode(),
        b"\r\n \n" + json.dumps(completion(), indent=2).encode() + b"\r\n",
        json.dumps(completion(logprobs={"content": [{"logprob": float("-inf")}]})).encode(),
        json.dumps(completion(created=2**70)).encode(),
        json.dumps(completion({"content": "hello", "note": "\ud83d"})).encode(),
    ],
    ids=["byte order mark", "blanks", "infinity (sgl-project/sglang#20323)", "a large number", "half a character"],
)
def test_a_body_that_orjson_refuses_is_read(body: bytes) -> None:
    assert call("openai", says(body)).generation.text == "hello"


@pytest.mark.parametrize("value", [rb'"\ud83d"', b'"\xff"', b"1" * 40, b"NaN"])
def test_a_tools_input_may_have_what_only_python_reads(value: bytes) -> None:
    body = b'{"type":"message","content":[{"type":"tool_use","input":{"a":%b}}],"stop_reason":"tool_use"}' % value
    text = call("anthropic", says(body)).generation.text
    assert text.startswith('{"a":')
    text.encode()


@pytest.mark.parametrize("body", [rb'{"error": {"message": "\ud83d"}}', rb'{"error": "\ud83d"}'])
def test_an_error_with_half_a_character_can_be_logged_and_stored(body: bytes) -> None:
    error = call("openai", says(body)).error
    (error.detail + error.failure.message).encode()


def deflated(body: bytes, bits: int) -> bytes:
    engine = zlib.compressobj(wbits=bits)
    return engine.compress(body) + engine.flush()


COMPRESSED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "gzip": (gzip.compress, "gzip"),
    "gzip without a header (router-for-me/CLIProxyAPI#1834)": (gzip.compress, ""),
    "gzip with something behind it": (lambda body: gzip.compress(body) + b"\0\0\r\n", "gzip"),
    "gzip in two members": (lambda body: gzip.compress(body[:40]) + gzip.compress(body[40:]), "x-gzip"),
    "deflate": (lambda body: deflated(body, zlib.MAX_WBITS), "deflate"),
    "raw deflate": (lambda body: deflated(body, -zlib.MAX_WBITS), "deflate"),
    "a header of a proxy that decompressed": (lambda body: body, "gzip"),
    "a header of a proxy that decompressed brotli": (lambda body: body, "br"),
    "a header that is no encoding": (lambda body: body, "utf-8"),
}


@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.parametrize(
    "body", [STREAMS["as most servers"], json.dumps(completion()).encode()], ids=["stream", "whole"]
)
def test_a_compressed_answer_is_read(name: str, body: bytes) -> None:
    """epam/ai-dial-core#1646, Wei-Shaw/claude-relay-service#1027, vm0-ai/vm0#8903."""
    compress, encoding = COMPRESSED[name]
    compressed = compress(body)
    outcome = call("openai", says(compressed, *([f"content-encoding: {encoding}"] if encoding else [])))
    assert outcome.generation.text in {"hello", f"h\u00e9l{FACE}lo"}
    assert outcome.server.calls[0].headers["accept-encoding"] == "identity"
    each = [compressed[at : at + 1] for at in range(len(compressed))]
    if not encoding:
        assert call("openai", sends(*each)).generation.text == outcome.generation.text


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"\x0b\x02\x80hello\x03", "br"),
        (b"\x28\xb5\x2f\xfd\x04", "zstd"),
        (gzip.compress(b"{}", mtime=0)[:8] + b"\xff" * 20, "gzip"),
    ],
    ids=["brotli", "zstd", "damaged gzip"],
)
def test_a_compression_that_cannot_be_read_is_no_answer_and_costs_nothing(body: bytes, encoding: str) -> None:
    outcome = call("openai", says(body, f"content-encoding: {encoding}"))
    assert code_of(outcome) == "overloaded"
    assert outcome.meter.usage == Usage()


def test_a_compressed_error_is_read() -> None:
    body = gzip.compress(json.dumps({"error": {"message": "too hot", "code": "x"}}).encode())
    outcome = call("openai", lambda call: call.answer(400, body, ["content-encoding: gzip"]))
    assert "too hot" in outcome.error.failure.message


@pytest.mark.parametrize("status", [200, 500])
def test_a_few_bytes_that_would_be_gigabytes_are_cut_off(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.providers.http.MAX_STREAM_BYTES", 1_000_000)
    bomb = gzip.compress(b" " * 50_000_000)
    outcome = call("openai", lambda call: call.answer(status, bomb, ["content-encoding: gzip"]))
    assert code_of(outcome) == "overloaded"
    assert outcome.meter.usage == Usage()


NAMES = sorted(
    {"choices", "delta", "message", "content", "text", "type", "error", "errors", "detail", "code", "usage", "x_groq"}
    | {
        "finish_reason",
        "native_finish_reason",
        "tool_calls",
        "function",
        "arguments",
        "refusal",
        "base_resp",
        "stop_reason",
    }
    | {field.name for field in REASONING_FIELDS}
    | {name for field in (*INPUT, *OUTPUT, *CACHED, *REASONING) for name in field.path}
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**65)
    | st.floats()
    | st.sampled_from(["", "stop", "error", "text", "9"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5), st.sampled_from(["openai", "anthropic"]))
def test_any_json_is_an_answer_or_an_error_and_its_counts_can_be_booked(document: Json, provider: str) -> None:
    body = json.dumps(document).encode()
    for whole in (True, False):
        meter = Meter()
        made = {"openai": OpenAITranscript, "anthropic": AnthropicTranscript}[provider](REQUEST, meter)
        try:
            (made.whole if whole else made.event)(body)
            made.generation()
        except ProviderError:
            pass
        made.settle()
        used = meter.usage
        assert 0 <= used.cached_input_tokens <= used.input_tokens < 2**33
        assert 0 <= used.reasoning_tokens <= used.output_tokens < 2**33
