"""What clients really send is taken alike on every way in: chat completions, jobs, and lines of batch files.

Each kind has the reports that it comes from.
"""

import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from api.fields.chat import CHAT_ROWS, TABLES, Surface
from api.fields.reading import read_request
from api.fields.table import Does
from api.openai_requests import embedding_request, parse_chat
from api.submission import llm_request_of
from models.errors import ValidationFailed
from tests.api.acting import Json, code_of
from tests.api.test_openai_batches import create, line, results, upload

pytestmark = pytest.mark.anyio

HI: Json = {"role": "user", "content": "hi"}
ANSWER: Json = {"role": "assistant", "content": "Hello."}
SCHEMA = {"type": "object", "properties": {"a": {"type": ["string", "null"], "default": None}}, "required": ["a"]}
WAYS_IN = [Surface.CHAT, Surface.JOB, Surface.LINE]


def taken(surface: Surface = Surface.CHAT, **fields: object) -> Json:
    """What an LLM is asked for a body."""
    return llm_request_of(read_request({"messages": [HI]} | fields, surface))


def problems(surface: Surface = Surface.CHAT, **fields: object) -> dict[str, str]:
    """What is wrong with a body, by field."""
    with pytest.raises(ValidationFailed) as refused:
        read_request({"messages": [HI]} | fields, surface)
    return {problem.field: problem.message for problem in refused.value.problems}


PLAIN = taken()

REPLAYED: Mapping[str, Json] = {
    # github/copilot-sdk#2061, tashfeenahmed/freellmapi#1070
    "openai's own answer": {
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    },
    "no tools were called": {"tool_calls": []},
    "a parsed answer": {"parsed": {"a": 1}, "refusal": None},
    "sources": {"annotations": [{"type": "url_citation", "url_citation": {"url": "x", "title": None}}]},
    # what DeepSeek, vLLM, OpenRouter, Ollama and LiteLLM add to their answers
    "DeepSeek's reasoning": {"reasoning_content": "hm"},
    "OpenRouter's reasoning": {"reasoning": "hm", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]},
    "Ollama's reasoning": {"thinking": "hm"},
    "LiteLLM's notes": {"provider_specific_fields": {"x": None}, "thinking_blocks": [{"type": "thinking"}]},
    # LibreChat by way of cg-dot/vertexai-cf-workers#21, Wei-Shaw/sub2api#225
    "a cache mark": {"cache_control": {"type": "ephemeral"}},
    # vllm-project/vllm#12864, microsoft/autogen#2748, BerriAI/litellm#2373 and #6701
    "a name": {"name": "bob"},
    "a name that is null": {"name": None},
    "LangChain's id": {"id": "run-1"},
    "a mark for training": {"weight": 1},
    "a refusal beside text": {"refusal": "No."},
}


@pytest.mark.parametrize("surface", WAYS_IN)
@pytest.mark.parametrize("kind", REPLAYED)
def test_what_clients_add_to_an_answer_that_they_send_back_changes_nothing(kind: str, surface: Surface) -> None:
    messages = [HI, ANSWER | REPLAYED[kind], HI]
    assert taken(surface, messages=messages)["messages"] == [HI, ANSWER, HI]


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
def test_a_message_of_every_role_may_have_a_name(role: str) -> None:
    message = {"role": role, "content": "hi"}
    assert taken(messages=[{**message, "name": "bob"}, HI])["messages"] == [message, HI]


CONTENTS: Mapping[str, tuple[object, str]] = {
    # ggml-org/llama.cpp#8367, kvcache-ai/ktransformers#773, mudler/LocalAI#10552, mozilla-ai/llamafile#760
    "text parts": ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
    "a part with a cache mark": ([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}], "a"),
    "a part with nulls": ([{"type": "text", "text": "a", "annotations": None, "colour": None}], "a"),
    "a part that ends a cached prefix": (
        [{"type": "text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit"}}],
        "a",
    ),
    "parts of the Responses API": ([{"type": "output_text", "text": "a", "annotations": [], "logprobs": []}], "a"),
    "an input part of the Responses API": ([{"type": "input_text", "text": "a"}], "a"),
    "a refusal part": ([{"type": "refusal", "refusal": "No."}], "No."),
    "Anthropic's and Mistral's thinking": (
        [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}],
        "a",
    ),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_parts_of_an_answer_are_joined_as_its_text(kind: str) -> None:
    content, text = CONTENTS[kind]
    assert taken(messages=[HI, {"role": "assistant", "content": content}, HI])["messages"][1]["content"] == text


@pytest.mark.parametrize(
    ("turn", "text"),
    [
        ({"content": None}, ""),
        ({}, ""),
        ({"content": [], "tool_calls": []}, ""),
        ({"content": None, "refusal": "I cannot."}, "I cannot."),
        ({"content": "", "refusal": "I cannot."}, "I cannot."),
    ],
)
def test_an_assistants_turn_without_content_is_its_refusal_or_empty(turn: Json, text: str) -> None:
    found = taken(messages=[HI, {"role": "assistant"} | turn, HI])["messages"]
    assert found[1] == {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "content", [None, [], 1, {"type": "text"}, ["a"], [{"type": "text", "text": None}], [{"text": 1}]]
)
def test_a_users_turn_needs_content(content: object) -> None:
    assert list(problems(messages=[{"role": "user", "content": content}])) == ["messages.0.content"]


NEUTRAL: Mapping[str, Json] = {
    # pydantic/pydantic-ai#155, earendil-works/pi#3649, nextcloud/integration_openai#429, CopilotKit/CopilotKit#224
    "empty lists": {"tools": [], "functions": [], "stop": [], "modalities": []},
    "tools that nobody may call": {"tools": [], "tool_choice": "auto", "parallel_tool_calls": False},
    "what OpenAI takes for absent": {"n": 1, "logprobs": False, "top_logprobs": 0, "logit_bias": {}},
    "kept or not": {"store": True, "metadata": None},
    "its own service": {"service_tier": "auto", "store": False},
    "hints for a cache": {
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "prompt_cache_options": {"ttl": "1h"},
    },
    # anomalyco/opencode#4386
    "an id against abuse": {"safety_identifier": "u"},
    "what may be in the answer": {"prediction": {"type": "content", "content": "x"}},
    "text only": {"modalities": ["text"], "verbosity": "medium"},
    "neutral sampling": {"repetition_penalty": 1.0},
    "nulls": dict.fromkeys(row.path for row in CHAT_ROWS if "." not in row.path and row.path != "messages"),
}


@pytest.mark.parametrize("surface", WAYS_IN)
@pytest.mark.parametrize("kind", NEUTRAL)
def test_what_changes_nothing_is_accepted(kind: str, surface: Surface) -> None:
    assert taken(surface, **NEUTRAL[kind]) == PLAIN


@pytest.mark.parametrize("surface", WAYS_IN)
def test_the_newer_limit_is_the_older_one(surface: Surface) -> None:
    assert taken(surface, max_completion_tokens=7)["max_tokens"] == 7
    assert taken(surface, max_completion_tokens=7, max_tokens=7)["max_tokens"] == 7
    assert list(problems(surface, max_completion_tokens=7, max_tokens=8)) == ["max_completion_tokens"]


def test_nulls_inside_objects_are_taken_for_absent_but_in_a_schema() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": None, "description": None}}
    assert taken(response_format=form)["response_format"]["json_schema"] == {"name": "a", "schema": SCHEMA}
    request = read_request({"messages": [HI], "metadata": {"a": None, "b": "c"}}, Surface.JOB)
    assert request.metadata == {"b": "c"}


FORMS: Mapping[str, Json] = {
    # abetlen/llama-cpp-python#1122 and #1677, and the clients of Anyscale and Together
    "beside json_object": {"type": "json_object", "schema": SCHEMA},
    # ggml-org/llama.cpp#11988 and #28697
    "beside json_schema": {"type": "json_schema", "schema": SCHEMA},
    "without a name": {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
    "in the place of its wrapper": {"type": "json_schema", "json_schema": SCHEMA},
    "as in the Responses API": {"type": "json_schema", "name": "answer", "schema": SCHEMA},
}


@pytest.mark.parametrize("surface", WAYS_IN)
@pytest.mark.parametrize("kind", FORMS)
def test_a_schema_is_found_where_clients_put_it(kind: str, surface: Surface) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    assert taken(surface, response_format=FORMS[kind])["response_format"] == wanted


def test_an_object_with_an_empty_schema_is_any_object() -> None:
    assert taken(response_format={"type": "json_object", "schema": {}})["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({"type": "json_object", "schema": SCHEMA, "colour": 1}, "response_format.colour"),
        ({"type": "text", "schema": SCHEMA}, "response_format.schema"),
        ({"type": "json_object", "schema": "x"}, "response_format.schema"),
        ({"type": "json_schema", "json_schema": {"name": "a", "colour": 1}}, "response_format.json_schema.colour"),
        ({"type": "regex"}, "response_format.type"),
    ],
)
def test_what_is_wrong_with_a_form_is_told_by_its_field(form: Json, field: str) -> None:
    assert field in problems(response_format=form)


def test_stream_options_count_where_something_streams_only() -> None:
    """digitalocean/langchain-gradient#29, BerriAI/litellm#5803, aliasrobotics/cai#78."""
    unused: list[Json | None] = [{"include_usage": True}, {"include_usage": None}, {}, {"include_usage": 3}, None]
    for options in unused:
        assert not parse_chat({"messages": [HI], "stream_options": options}).stream
        assert not parse_chat({"messages": [HI], "stream": False, "stream_options": options}).stream
        assert taken(Surface.JOB, stream=False, stream_options=options) == PLAIN
        assert taken(Surface.LINE, stream=False, stream_options=options) == PLAIN
    asked: list[tuple[Json | None, bool]] = [
        ({"include_usage": True, "include_obfuscation": False}, True),
        ({"include_usage": True, "include_obfuscation": None}, True),
        ({"include_usage": None}, False),
        ({}, False),
        (None, False),
    ]
    for options, include_usage in asked:
        chat = parse_chat({"messages": [HI], "stream": True, "stream_options": options})
        assert (chat.stream, chat.include_usage) == (True, include_usage)
    for body in ({"stream": "yes"}, {"stream": 0}, {"stream": True, "stream_options": {"include_usage": "yes"}}):
        with pytest.raises(ValidationFailed):
            parse_chat({"messages": [HI]} | body)


REFUSED: Mapping[str, tuple[Json, str, str]] = {
    "tools": ({"tools": [{"type": "function"}]}, "tools", "leave it out"),
    "a forced tool": ({"tool_choice": "required"}, "tool_choice", "leave it out"),
    "several answers": ({"n": 2}, "n", "as often as"),
    "n as a number of another kind": ({"n": True}, "n", "as often as"),
    "log probabilities": ({"logprobs": True, "top_logprobs": 3}, "logprobs", "leave it out"),
    "effort": ({"reasoning_effort": "high"}, "reasoning_effort", "leave it out"),
    "a paid tier": ({"service_tier": "flex"}, "service_tier", "`priority`"),
    "extra_body on the wire": ({"extra_body": {"top_k": 1}}, "extra_body", "beside the others"),
    "vLLM's schema": ({"guided_json": {}}, "guided_json", "json_schema"),
    "llama-server's schema": ({"json_schema": {}}, "json_schema", "`response_format`"),
    "a limit of another API": ({"max_output_tokens": 5}, "max_output_tokens", "`max_tokens`"),
    "thinking": ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs", "another LLM"),
    "an unknown field": ({"temprature": 1}, "temprature", "no such field"),
}


@pytest.mark.parametrize("surface", WAYS_IN)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_change_the_answer_is_refused_with_what_to_do(kind: str, surface: Surface) -> None:
    fields, field, advice = REFUSED[kind]
    assert advice in problems(surface, **fields)[field]


IMAGE: Json = {"type": "image_url", "image_url": {"url": "https://example.org/x.png"}}

REFUSED_MESSAGES: Mapping[str, tuple[Json, str]] = {
    "a tool's result": ({"role": "tool", "tool_call_id": "x", "content": "y"}, "messages.1.role"),
    "a function's result": ({"role": "function", "name": "x", "content": "y"}, "messages.1.role"),
    "a call": ({"role": "assistant", "tool_calls": [{"id": "x"}]}, "messages.1.tool_calls"),
    "an older call": ({"role": "assistant", "function_call": {"name": "f"}}, "messages.1.function_call"),
    "speech": ({"role": "assistant", "audio": {"id": "a"}}, "messages.1.audio"),
    "an image": ({"role": "user", "content": [{"type": "text", "text": "x"}, IMAGE]}, "messages.1.content.1.type"),
    "Anthropic's image": ({"role": "user", "content": [{"type": "image"}]}, "messages.1.content.0.type"),
    "a file": ({"role": "user", "content": [{"type": "file", "file": {}}]}, "messages.1.content.0.type"),
    "a sound": ({"role": "user", "content": [{"type": "input_audio"}]}, "messages.1.content.0.type"),
    "a turn to go on with": ({"role": "assistant", "content": "x", "prefix": True}, "messages.1.prefix"),
    "a foreign field": ({"role": "user", "content": "x", "colour": "red"}, "messages.1.colour"),
    "a refusal of a user": ({"role": "user", "content": "x", "refusal": "y"}, "messages.1.refusal"),
    "a foreign role": ({"role": "model", "content": "x"}, "messages.1.role"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED_MESSAGES)
def test_a_message_that_cannot_be_kept_is_refused_by_its_place(kind: str) -> None:
    message, field = REFUSED_MESSAGES[kind]
    found = problems(messages=[HI, message])
    assert list(found) == [field]
    assert found[field].endswith((".", "'"))


@pytest.mark.parametrize("surface", Surface)
def test_every_row_of_the_table_does_what_it_says(surface: Surface) -> None:
    """Each field that is refused or ignored, with a value of its own, on every way in."""
    for path, row in TABLES[surface].items():
        if "." in path or "=" in path or row.does is Does.USED:
            continue
        is_job = surface in (Surface.JOB, Surface.FORM) and path != "prompt"
        body: Json = {"prompt": "x"} if is_job else {"messages": [HI]}
        body[path] = {"some": ["value"]}
        if row.does is Does.IGNORED:
            read_request(body, surface)
        else:
            with pytest.raises(ValidationFailed) as refused:
                read_request(body, surface)
            assert (path, row.note) in [(p.field, p.message) for p in refused.value.problems]
        for neutral in row.neutral:
            read_request({**body, path: neutral}, surface)


@pytest.mark.parametrize("name", ["prompt", "callback_url", "conversation_id"])
def test_a_field_of_a_job_is_not_one_of_a_chat_completion(name: str) -> None:
    for surface in (Surface.CHAT, Surface.LINE):
        assert "chat completion" in problems(surface, **{name: "x"})[name]


def test_many_problems_are_told_and_no_more_than_a_hundred() -> None:
    assert len(problems(messages=[{"role": "tool"}] * 2000)) == 100


TOKEN_IDS: Mapping[str, object] = {
    # danny-avila/rag_api#115, #104 and #161, langchain-ai/langchain#35252, NorthlandPositronics/Cogtrix#2069
    "ids of one text": [1, 2, 3],
    "ids of several": [[1, 2, 3], [4, 5]],
    "ids after a text": ["x", [1]],
}


@pytest.mark.parametrize("kind", TOKEN_IDS)
async def test_token_ids_are_refused_with_what_to_do(client: httpx.AsyncClient, kind: str) -> None:
    response = await client.post("/v1/embeddings", json={"model": "vectors", "input": TOKEN_IDS[kind]})
    assert (response.status_code, code_of(response)) == (422, "validation_failed")
    assert response.json()["error"]["param"] == "input"
    assert "check_embedding_ctx_length=False" in response.json()["detail"]


@pytest.mark.parametrize(
    ("given", "field", "said"),
    [
        ([], "input", "1 to 2048"),
        ("", "input", "empty"),
        (["a", ""], "input.1", "empty"),
        (["a", None], "input.1", "a text"),
        (True, "input", "a text"),
        ([True], "input.0", "a text"),
        ({"text": "x"}, "input", "a text"),
        (["x"] * 2049, "input", "not 2049"),
    ],
)
def test_what_is_wrong_with_texts_is_told_by_its_place(given: object, field: str, said: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        embedding_request({"model": "vectors", "input": given})
    (problem,) = refused.value.problems
    assert problem.field == field
    assert said in problem.message


def test_an_embedding_request_is_read_as_clients_send_it() -> None:
    body: dict[str, Any] = {"model": "v", "input": "x", "encoding_format": None, "dimensions": None, "user": None}
    request = embedding_request(body | {"truncate": "NONE"})
    assert (request.input, request.encoding_format, request.dimensions) == ("x", "float", None)
    for name, advice in (("input_type", "into the text"), ("extra_body", "beside"), ("colour", "no such field")):
        with pytest.raises(ValidationFailed) as refused:
            embedding_request({"model": "v", "input": "x", name: "query"})
        assert refused.value.param == name
        assert advice in refused.value.detail


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"endpoint": "/v1/responses"}, "endpoint", "`messages`"),
        ({"endpoint": "/v1/completions"}, "endpoint", "`messages`"),
        ({"endpoint": "/v1/moderations"}, "endpoint", "/v1/embeddings"),
    ],
)
async def test_a_batch_of_another_endpoint_is_refused_with_what_there_is(
    client: httpx.AsyncClient, fields: Json, param: str, said: str
) -> None:
    response = await create(client, await upload(client, [line("a")]), **fields)
    assert (code_of(response), response.json()["error"]["param"]) == ("validation_failed", param)
    assert said in response.json()["detail"]


async def test_a_batch_is_made_with_nulls_anywhere(client: httpx.AsyncClient) -> None:
    fields = {"metadata": {"a": None, "b": "c"}, "output_expires_after": None, "name": None, "priority": None}
    response = await create(client, await upload(client, [line("a")]), **fields)
    assert (response.status_code, response.json()["metadata"]) == (200, {"b": "c"})


@pytest.mark.parametrize("purpose", ["assistants", "fine-tune", "vision", "user_data", "evals", "else"])
async def test_a_file_of_another_purpose_is_refused_with_what_there_is(client: httpx.AsyncClient, purpose: str) -> None:
    response = await client.post("/v1/files", files={"file": ("a.jsonl", b"{}")}, data={"purpose": purpose})
    assert (code_of(response), response.json()["error"]["param"]) == ("validation_failed", "purpose")
    assert "`batch`" in response.json()["detail"]


async def test_lines_take_what_chat_completions_take(client: httpx.AsyncClient) -> None:
    lines = [
        line(kind, messages=[HI, ANSWER | added], **NEUTRAL["empty lists"], stream=False, stream_options={"x": 1})
        for kind, added in REPLAYED.items()
    ]
    batch = (await create(client, await upload(client, lines))).json()
    assert batch["request_counts"] == {"total": len(lines), "completed": 0, "failed": 0}
    assert await results(client, batch) == []


async def test_a_form_takes_what_changes_nothing_and_refuses_the_rest(client: httpx.AsyncClient) -> None:
    files = {"file": ("a.csv", b"text\nhello\n")}
    form = {"prompt": "Say {{text}}", "model": "wide"}
    neutral = {"n": "1", "stream": "false", "logprobs": "false", "tools": "[]", "store": "true", "top_logprobs": "null"}
    more = {"max_completion_tokens": "7", "prompt_cache_key": "k", "stop": "[]"}
    taken = await client.post("/v1/batches/upload", files=files, data=form | neutral | more)
    assert taken.status_code == 202, taken.text
    dialect = json.dumps({"type": "json_object", "schema": SCHEMA, "strict": None})
    assert (await client.post("/v1/batches/upload", files=files, data=form | {"response_format": dialect})).is_success
    for field, value in (("n", "2"), ("stream", "true"), ("tools", "[{}]"), ("messages", "[]"), ("expires_in", "9")):
        refused = await client.post("/v1/batches/upload", files=files, data=form | {field: value})
        assert (code_of(refused), refused.json()["errors"][0]["field"]) == ("validation_failed", field)
        assert refused.json()["errors"][0]["message"] == TABLES[Surface.FORM][field].note
