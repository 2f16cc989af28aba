"""Parameters that an LLM refuses by name: each row of the first table in docs/providers.md, against a real server."""

import asyncio
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.catalog import LLM
from models.pricing import Usage
from tests.workers.providers.calling import PROVIDERS, REQUEST, call, llm
from tests.workers.providers.scripted import Call, Server, serve
from tests.workers.providers.test_openai import COUNTED, WHOLE, piece
from tests.workers.providers.vendor_errors import openai
from tests.workers.providers.vendor_refusals import (
    FORM,
    PENALTIES,
    ROWS,
    SCHEMA,
    SYSTEM,
    Json,
    Row,
    forbidden,
    has_role,
    sends,
    unsupported,
)
from workers.providers.adaptation import MOST_RESENDS, REMEMBERED_S, Change, Memory
from workers.providers.base import EmbeddingRequest, GenerationRequest, Meter, ProviderError
from workers.providers.openai import OpenAIProvider

DOCUMENT = Path(__file__).parents[3] / "docs" / "providers.md"
MESSAGE = {"type": "message", "content": [{"type": "text", "text": "hello"}], "stop_reason": "end_turn"}


async def answers(call: Call) -> None:
    """Answer in one piece, as both APIs may."""
    await call.answer(200, json.dumps(MESSAGE if call.path.endswith("/messages") else WHOLE).encode())


def refusing(row: Row) -> Callable[[Call], Any]:
    """A server that refuses what a row says, and answers all else."""

    async def handler(call: Call) -> None:
        if row.refuses(call.body):
            await call.answer(row.status, json.dumps(row.said).encode())
        else:
            await answers(call)

    return handler


def ask(
    handler: Callable[[Call], Any], *requests: GenerationRequest, provider: str = "openai", **entry: Any
) -> tuple[Server, list[Meter]]:
    """Make requests of one LLM, one after another; those that fail, fail."""
    meters = [Meter() for _ in requests]

    async def main() -> Server:
        async with serve(handler) as server:
            made = PROVIDERS[provider](llm(provider, server.url, **entry))
            for request, meter in zip(requests, meters, strict=True):
                with suppress(ProviderError):
                    await made.generate(request, meter)
            await made.close()
        return server

    return asyncio.run(main()), meters


def documented() -> dict[str, str]:
    """The document's table: what a server says, what is sent instead."""
    text = DOCUMENT.read_text(encoding="utf-8").partition("| what the LLM refuses |")[2].partition("\n\n")[0]
    return dict(re.findall(r"^\| (.+?) \| ([^|]+) \|$", text, re.MULTILINE))


def test_the_document_and_the_tests_have_the_same_rows() -> None:
    shown = {name: ", ".join(f"`{change}`" for change in row.adapted) for name, row in ROWS.items()}
    assert documented() == shown


@pytest.mark.parametrize("name", ROWS)
def test_what_an_llm_refuses_by_name_is_changed_sent_again_and_remembered(name: str) -> None:
    row = ROWS[name]
    request = replace(REQUEST, **row.request)
    server, meters = ask(refusing(row), request, request, provider=row.provider)
    assert [meter.adapted for meter in meters] == [row.adapted, row.adapted]
    refused = [row.refuses(seen.body) for seen in server.calls]
    first = refused.index(False)
    assert 1 <= first <= MOST_RESENDS
    assert refused[first + 1 :] == ([False] if row.remembered else [True, False])


def test_a_refused_call_costs_nothing_and_the_answer_is_booked_once() -> None:
    row = ROWS["`Unsupported parameter: 'temperature'` (OpenAI)"]
    outcome = call("openai", refusing(row), replace(REQUEST, temperature=0.0))
    assert outcome.meter.usage == COUNTED
    assert outcome.meter.adapted == ["temperature"]


def test_a_request_without_refusal_is_sent_as_it_is() -> None:
    outcome = call("openai", answers, replace(REQUEST, temperature=0.5, response_format=FORM))
    assert outcome.meter.adapted == []
    assert outcome.server.calls[0].body["response_format"] == FORM


@pytest.mark.parametrize(
    "said",
    [
        openai("Invalid 'temperature': decimal above maximum value. Expected a value <= 2.", param="temperature"),
        openai("This model does not support temperature values above 1."),
        openai("Invalid value for 'temperature': must be at most 1.", code="invalid_value", param="temperature"),
        openai("Invalid schema for response_format 'person': In context=(), 'age' is not supported."),
        openai("invalid schema for response format: response_format/json_schema: minItems is not supported"),
        openai("Unsupported parameter: 'reasoning_effort' is not supported with this model."),
        openai("Unknown parameter: 'messages[0].name'."),
        {"detail": [{"type": "extra_forbidden", "loc": ["body", "messages", 0, "temperature"], "msg": "no"}]},
    ],
)
def test_a_value_or_a_part_that_is_refused_is_the_callers(said: Json) -> None:
    async def refuses(call: Call) -> None:
        await call.answer(400, json.dumps(said).encode())

    outcome = call("openai", refuses, replace(REQUEST, temperature=1.5, response_format=FORM))
    assert outcome.error.failure.code == "provider_rejected"
    assert len(outcome.server.calls) == 1


@pytest.mark.parametrize("status", [401, 402, 403, 404, 413, 429, 500])
def test_only_a_refusal_of_the_request_changes_it(status: int) -> None:
    async def refuses(call: Call) -> None:
        await call.answer(status, json.dumps(unsupported("temperature")).encode())

    outcome = call("openai", refuses, replace(REQUEST, temperature=0.5))
    assert outcome.error.failure.code != "provider_rejected"
    assert len(outcome.server.calls) == 1


def test_a_call_is_sent_again_a_bounded_number_of_times() -> None:
    """A server that refuses one parameter after another has the last word after a few."""
    names = ["temperature", "top_p", "top_k", "min_p", "seed", "stop", *PENALTIES, "max_tokens"]

    async def refuses(call: Call) -> None:
        name = next(name for name in names if name in call.body)
        await call.answer(400, json.dumps(unsupported(name)).encode())

    request = replace(
        REQUEST,
        temperature=0.5,
        top_p=0.5,
        top_k=5,
        min_p=0.5,
        seed=1,
        stop=["x"],
        frequency_penalty=0.5,
        presence_penalty=0.5,
    )
    outcome = call("openai", refuses, request)
    assert len(outcome.server.calls) == 1 + MOST_RESENDS
    assert "'max_tokens'" in outcome.error.failure.message


def test_all_that_chat_programs_send_by_default_may_be_refused_one_by_one() -> None:
    """LangChain's and chat programs' defaults at an LLM that reasons: guardrails-ai/guardrails#1353."""
    names = ["max_tokens", "temperature", "top_p", "stop", *PENALTIES]

    async def refuses(call: Call) -> None:
        name = next((name for name in names if name in call.body), None)
        await (call.answer(400, json.dumps(unsupported(name)).encode()) if name else answers(call))

    request = replace(REQUEST, temperature=0.7, top_p=1.0, stop=["x"], frequency_penalty=0.5, presence_penalty=0.5)
    server, meters = ask(refuses, request, request)
    assert len(server.calls) == len(names) + 2
    assert all(len(meter.adapted) == len(names) for meter in meters)
    assert all(meter.usage == COUNTED for meter in meters)


def test_a_server_that_wants_one_name_and_then_the_other_is_not_asked_for_ever() -> None:
    async def refuses(call: Call) -> None:
        sent, other = ("max_tokens", "max_completion_tokens")[:: 1 if "max_tokens" in call.body else -1]
        await call.answer(400, json.dumps(openai(f"Unsupported parameter: '{sent}'. Use '{other}' instead.")).encode())

    outcome = call("openai", refuses)
    assert outcome.error.failure.code == "provider_rejected"
    assert 1 < len(outcome.server.calls) <= 1 + MOST_RESENDS


def test_a_time_limit_covers_every_form_of_a_call() -> None:
    async def refuses_then_hangs(call: Call) -> None:
        if "temperature" in call.body:
            await call.answer(400, json.dumps(unsupported("temperature")).encode())
        else:
            await asyncio.sleep(60)

    outcome = call("openai", refuses_then_hangs, replace(REQUEST, temperature=0.5), timeout_s=0.3)
    assert outcome.error.failure.code == "timeout"
    assert outcome.meter.usage.output_tokens == REQUEST.max_tokens  # of the one call that may have cost something


def test_a_change_is_remembered_only_once_it_helped() -> None:
    """A refusal that goes on whatever is left out says nothing of the parameter."""

    async def refuses(call: Call) -> None:
        if call.body["messages"][0]["content"] == "bad":
            await call.answer(400, json.dumps(openai("Unsupported parameter: 'temperature'")).encode())
        else:
            await answers(call)

    bad = [{"role": "user", "content": "bad"}]
    server, meters = ask(refuses, replace(REQUEST, temperature=0.5, messages=bad), replace(REQUEST, temperature=0.5))
    assert [sends("temperature")(seen.body) for seen in server.calls] == [True, False, True]
    assert meters[1].adapted == []


ECHO = "Unsupported parameter: 'temperature'"


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": [{"role": "user", "content": ECHO}]},
        {"stop": [ECHO]},
        {"stop": [ECHO[:25], ECHO[25:]]},
    ],
)
def test_what_a_request_made_a_server_say_changes_nobody_elses(changes: Json) -> None:
    """A hostile request has the server echo a refusal, and succeeds once the parameter is left out."""

    async def echoes(call: Call) -> None:
        texts = "".join([call.body["messages"][0]["content"], *call.body.get("stop", [])])
        if "temperature" in call.body and "Unsupported" in texts:
            await call.answer(400, json.dumps(openai(f"cannot take this: {texts}")).encode())
        else:
            await answers(call)

    hostile = replace(REQUEST, temperature=0.5, **changes)
    server, meters = ask(echoes, hostile, replace(REQUEST, temperature=0.5))
    assert meters[0].adapted == ["temperature"]
    assert meters[1].adapted == []
    assert server.calls[-1].body["temperature"] == 0.5


def test_what_is_remembered_is_bounded_and_forgotten_after_an_hour() -> None:
    now = [0.0]
    memory = Memory(llm("openai", "http://x"), lambda: now[0])
    memory.keep([Change("temperature")])
    memory.keep(Change(f"p{n}") for n in range(1000))
    assert Change("temperature") in memory.changes.values()
    assert len(memory.changes) == 32
    now[0] = REMEMBERED_S
    assert not memory.changes


def test_an_entry_of_the_catalogue_declares_what_its_llm_does_not_take() -> None:
    async def refuses(call: Call) -> None:
        if "temperature" in call.body:
            await call.answer(400, json.dumps(unsupported("temperature")).encode())
        else:
            await answers(call)

    renamed = {"max_tokens": "max_completion_tokens", "response_format": "json_object", "system": "developer"}
    request = replace(REQUEST, messages=SYSTEM, temperature=0.5, response_format=FORM)
    server, meters = ask(refuses, request, unsupported=["temperature", "seed"], renamed=renamed)
    assert meters[0].adapted == [
        "temperature",
        "max_tokens -> max_completion_tokens",
        "response_format -> json_object",
        "system -> developer",
    ]
    (body,) = (seen.body for seen in server.calls)
    assert body["response_format"] == {"type": "json_object"}
    assert body["messages"][0]["role"] == "developer"
    assert json.dumps(SCHEMA, separators=(",", ":")) in body["messages"][0]["content"]


def test_a_declaration_that_no_longer_holds_is_changed_back() -> None:
    async def refuses(call: Call) -> None:
        if "max_completion_tokens" in call.body:
            await call.answer(422, json.dumps(forbidden("max_completion_tokens")).encode())
        else:
            await answers(call)

    server, meters = ask(refuses, REQUEST, renamed={"max_tokens": "max_completion_tokens"})
    assert [sends("max_tokens")(seen.body) for seen in server.calls] == [False, True]
    assert meters[0].adapted == []


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"unsupported": ["messages"]}, "no request is without"),
        ({"unsupported": ["max_tokens"]}, "no request is without"),
        ({"renamed": {"max_tokens": "tokens"}}, "cannot be sent as"),
        ({"renamed": {"top_p": "p"}}, "cannot be sent as"),
    ],
)
def test_a_catalogue_with_a_change_that_cannot_be_made_is_refused(entry: Json, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        llm("openai", "http://x", **entry)


def test_only_remote_llms_have_parameters_to_change() -> None:
    mock = {"tier": "t", "provider": "mock", "context_window": 1, "input_price": "1", "output_price": "1"}
    with pytest.raises(ValueError, match="has no `unsupported`"):
        LLM.model_validate({**mock, "unsupported": ["temperature"]})


def test_a_form_in_words_and_system_messages_as_the_users_are_one_message() -> None:
    """Templates that know no system messages take no two messages of one role in a row either."""

    async def refuses(call: Call) -> None:
        if "response_format" in call.body:
            await call.answer(400, json.dumps({"error": "response_format is not supported"}).encode())
        elif has_role("system")(call.body):
            await call.answer(400, json.dumps({"error": "System role not supported"}).encode())
        else:
            await answers(call)

    server, (meter,) = ask(refuses, replace(REQUEST, messages=SYSTEM, response_format=FORM))
    assert meter.adapted == ["response_format -> instruction", "system -> user"]
    (message,) = server.calls[-1].body["messages"]
    assert message["role"] == "user"
    assert message["content"].startswith("be brief\n\nAnswer with one JSON value")
    assert message["content"].endswith("hi")


def test_an_llm_that_takes_neither_role_is_told_by_the_user() -> None:
    """o1-mini: langchain-ai/langchain#28895, marcolardera/chatgpt-cli#78."""

    async def refuses(call: Call) -> None:
        role = call.body["messages"][0]["role"]
        if role == "user":
            await answers(call)
        else:
            said = f"Unsupported value: 'messages[0].role' does not support '{role}' with this model."
            await call.answer(400, json.dumps(openai(said, code="unsupported_value")).encode())

    request = replace(REQUEST, messages=SYSTEM)
    server, meters = ask(refuses, request, request)
    assert [seen.body["messages"][0]["role"] for seen in server.calls] == ["system", "developer", "user", "user"]
    assert meters[1].adapted == ["system -> user"]


def test_the_form_of_text_is_left_out_where_no_form_is_taken() -> None:
    """lmstudio-ai/lmstudio-bug-tracker#307."""

    async def refuses(call: Call) -> None:
        if "response_format" in call.body:
            await call.answer(400, json.dumps({"error": "'response_format.type' must be 'json_schema'"}).encode())
        else:
            await answers(call)

    server, (meter,) = ask(refuses, replace(REQUEST, response_format={"type": "text"}))
    assert meter.adapted == ["response_format -> instruction"]
    assert server.calls[-1].body["messages"] == REQUEST.messages


def test_a_request_too_long_to_look_for_an_echo_in_teaches_nothing() -> None:
    row = ROWS["`Argument not supported on this model: stop` (xAI)"]
    long = replace(REQUEST, stop=["x"], messages=[{"role": "user", "content": "word " * 100_000}])
    server, meters = ask(refusing(row), long, replace(REQUEST, stop=["x"]))
    assert [row.refuses(seen.body) for seen in server.calls] == [True, False, True, False]
    assert meters[0].adapted == ["stop"]


def test_the_same_request_is_never_sent_again() -> None:
    """Not even where what an LLM refuses was already changed."""

    async def refuses(call: Call) -> None:
        await call.answer(400, json.dumps(openai("'messages[0].role' does not support 'system'")).encode())

    outcome = call("openai", refuses, replace(REQUEST, messages=SYSTEM), renamed={"system": "developer"})
    assert len(outcome.server.calls) == 1


def test_a_refusal_that_comes_as_an_event_is_one_too() -> None:
    async def refuses(call: Call) -> None:
        if "temperature" not in call.body:
            await answers(call)
            return
        await call.begin()
        await call.event({"error": {"code": 400, "message": "Unsupported parameter: 'temperature'"}})
        await call.end()

    outcome = call("openai", refuses, replace(REQUEST, temperature=0.5))
    assert outcome.generation.text == "hello"
    assert outcome.meter.usage == COUNTED


def test_nothing_is_sent_again_of_which_something_came() -> None:
    async def breaks_off(call: Call) -> None:
        await call.begin()
        await call.event(piece("he"))
        await call.event({"error": {"code": 400, "message": "Unsupported parameter: 'temperature'"}})
        await call.end()

    outcome = call("openai", breaks_off, replace(REQUEST, temperature=0.5))
    assert outcome.error.failure.code == "provider_rejected"
    assert len(outcome.server.calls) == 1


def test_what_embeddings_are_asked_for_in_is_left_out_where_it_is_refused() -> None:
    """Their number of dimensions never is: the vectors would be others."""

    async def refuses(call: Call) -> None:
        if "encoding_format" in call.body:
            await call.answer(400, json.dumps(openai("Unknown parameter: 'encoding_format'.")).encode())
        elif "dimensions" in call.body:
            await call.answer(400, json.dumps(unsupported("dimensions")).encode())
        else:
            await call.answer(200, b'{"data": [{"index": 0, "embedding": [0.5]}], "usage": {"prompt_tokens": 1}}')

    async def main() -> None:
        async with serve(refuses) as server:
            entry = llm("openai", server.url, renamed={"system": "user", "max_tokens": "max_completion_tokens"})
            provider, meter = OpenAIProvider(entry), Meter()
            assert await provider.embed(EmbeddingRequest(["x"]), meter) == [[0.5]]
            assert meter.adapted == ["encoding_format"]
            assert meter.usage == Usage(1)
            with pytest.raises(ProviderError, match="dimensions"):
                await provider.embed(EmbeddingRequest(["x"], dimensions=5), Meter())
            await provider.close()

    asyncio.run(main())


ECHOED = "unsupported_parameter"
ECHOES: dict[str, tuple[GenerationRequest, Callable[[Json], object]]] = {
    "an error as the prompt": (
        replace(REQUEST, messages=[{"role": "user", "content": json.dumps(openai("x", param="seed", code=ECHOED))}]),
        lambda body: openai(body["messages"][0]["content"]),
    ),
    "a validator's list as the prompt": (
        replace(REQUEST, messages=[{"role": "user", "content": json.dumps(forbidden("seed")["message"]["detail"])}]),
        lambda body: openai(body["messages"][0]["content"]),
    ),
    "a name of the schema": (
        replace(
            REQUEST,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"seed": {}}}},
            },
        ),
        lambda _: openai("additional properties are not allowed ('seed' was unexpected)"),
    ),
}


@pytest.mark.parametrize("kind", ECHOES)
def test_what_a_request_may_have_put_into_an_error_changes_no_other_request(kind: str) -> None:
    """A server that says what it was sent, or speaks of a schema, says nothing of the LLM."""
    request, said = ECHOES[kind]

    async def handler(call: Call) -> None:
        is_evil = call.body["messages"] != REQUEST.messages or "response_format" in call.body
        if is_evil and "seed" in call.body:
            await call.answer(400, json.dumps(said(call.body)).encode())
        else:
            await answers(call)

    server, meters = ask(handler, replace(request, seed=1), replace(REQUEST, seed=1))
    assert [meter.adapted for meter in meters] == [["seed"], []]
    assert "seed" in server.calls[-1].body
