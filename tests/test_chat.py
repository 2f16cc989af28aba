"""Chat completions while the caller waits: hanging up, waiting too long, falling back before and after some text."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest

from tests.stack import Database, Stack, wait_until

LLMS: Mapping[str, Mapping[str, Any]] = {  # Any: TOML values
    "echo": {"mock": {"word_s": 0.02}},
    "slow": {"mock": {"latency_s": 60}},
    "late": {"mock": {"latency_s": 1.5, "output": "one\u2028two"}},
    "late-and-broken": {"retries": 0, "mock": {"latency_s": 1.5, "error": "overloaded"}},
    "chatty": {"mock": {"word_s": 0.2}},
    "busy": {"retries": 0, "fallbacks": ["echo"], "mock": {"error": "overloaded"}},
    "breaks": {"retries": 0, "fallbacks": ["echo"], "mock": {"word_s": 0.2, "breaks_after_words": 2}},
}
SAID = "one two three four five six seven eight"


@dataclass
class Running:
    """A running Headrace, with a client of it."""

    url: str
    key: str
    client: openai.OpenAI
    database: Database

    def wait_for_status(self, prompt: str, status: str) -> None:
        """Wait until the job of a prompt has a status."""
        query = "SELECT status FROM jobs WHERE request -> 'messages' -> 0 ->> 'content' = %s"
        wait_until(lambda: [row["status"] for row in self.database.rows(query, prompt)] == [status], 20)


@pytest.fixture
def running(stack: Stack, database: Database) -> Iterator[Running]:
    stack.settings["HEADRACE_SYNC_WAIT_S"] = "2"
    stack.catalog(LLMS)
    stack.relay()
    stack.worker(concurrency=16)
    _, url = stack.api()
    with openai.OpenAI(base_url=f"{url}/v1", api_key=database.api_key, max_retries=0) as client:
        yield Running(url, database.api_key, client, database)


@pytest.fixture
def beating(stack: Stack, running: Running) -> Iterator[Running]:
    """Another API of the same Headrace, whose streams give signs of life."""
    stack.settings |= {"HEADRACE_STREAM_HEARTBEAT_S": "0.2", "HEADRACE_SYNC_WAIT_S": "20"}
    _, url = stack.api()
    with openai.OpenAI(base_url=f"{url}/v1", api_key=running.key, max_retries=0) as client:
        yield Running(url, running.key, client, running.database)


def test_what_becomes_of_a_chat_that_does_not_go_straight_on(running: Running) -> None:
    """One running Headrace, since it takes seconds to start."""
    hanging_up_cancels_the_job(running)
    hanging_up_on_a_stream_cancels_the_job(running)
    waiting_too_long_names_the_job_which_goes_on(running)
    a_fallback_before_any_text_is_not_noticed(running)
    a_fallback_after_some_text_ends_the_stream_with_an_error(running)
    a_structured_answer_is_streamed_whole(running)
    the_same_key_answers_with_the_same_job(running)
    a_stream_is_refused_as_anything_is(running)


def test_a_client_gets_signs_of_life_or_waits_in_pieces(beating: Running) -> None:
    """BerriAI/litellm#34374, #34819, #37322: a silent stream is cut by whoever stands between."""
    body = {"model": "late", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    headers = {"authorization": f"Bearer {beating.key}"}
    with httpx.stream("POST", f"{beating.url}/v1/chat/completions", json=body, headers=headers) as response:
        pieces = response.iter_bytes()
        assert (response.status_code, next(pieces)) == (200, b": keep-alive\n")
        rest = b"".join(pieces)
    assert rest.startswith(b": keep-alive\n")
    assert b"one\\u2028two" in rest
    chunks = list(_stream(beating, "late", "hi"))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one\u2028two"
    with pytest.raises(openai.APIError) as caught:
        list(_stream(beating, "late-and-broken", "hi"))
    assert caught.value.code == "overloaded"
    keyed = {"idempotency-key": "in pieces", "prefer": "wait=1"}
    hello: Any = [{"role": "user", "content": "in pieces"}]  # Any: the client's union
    client = beating.client.with_options(max_retries=5)
    answer = client.chat.completions.create(model="late", messages=hello, extra_headers=keyed)
    assert answer.choices[0].message.content == "one\u2028two"
    beating.wait_for_status("in pieces", "completed")  # one job
    stream = _stream(beating, "slow", "silence")
    stream.close()
    beating.wait_for_status("silence", "cancelled")


def hanging_up_cancels_the_job(running: Running) -> None:
    with pytest.raises(httpx.ReadTimeout):
        _post(running, "slow", "hang up", timeout=1.0)
    running.wait_for_status("hang up", "cancelled")


def hanging_up_on_a_stream_cancels_the_job(running: Running) -> None:
    stream = _stream(running, "chatty", SAID)
    assert next(iter(stream)).choices[0].delta.role == "assistant"
    stream.close()
    running.wait_for_status(SAID, "cancelled")


def waiting_too_long_names_the_job_which_goes_on(running: Running) -> None:
    for stream in (False, True):
        response = _post(running, "slow", f"too long {stream}", stream=stream)
        assert (response.status_code, response.json()["code"]) == (504, "wait_timeout")
        assert response.headers["x-should-retry"] == "false"
        assert response.headers["x-headrace-job-id"] in response.json()["detail"]
        running.wait_for_status(f"too long {stream}", "in_progress")


def a_fallback_before_any_text_is_not_noticed(running: Running) -> None:
    chunks = list(_stream(running, "busy", "fall back"))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "fall back"
    assert chunks[-1].model == "echo"


def a_fallback_after_some_text_ends_the_stream_with_an_error(running: Running) -> None:
    said: list[str] = []
    with pytest.raises(openai.APIError) as caught:
        said.extend(chunk.choices[0].delta.content or "" for chunk in _stream(running, "breaks", "a b c d"))
    assert said[:2] == ["", "a "]
    assert caught.value.code == "connection"


def a_structured_answer_is_streamed_whole(running: Running) -> None:
    prompt = '{"a": "b c d e"}'
    form: Any = {"type": "json_object"}  # Any: the client's union
    chunks = list(_stream(running, "echo", prompt, response_format=form))
    said = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert said == [prompt]


def the_same_key_answers_with_the_same_job(running: Running) -> None:
    first = _post(running, "echo", "only once", headers={"idempotency-key": "k1"})
    again = _post(running, "echo", "only once", headers={"idempotency-key": "k1"}, stream=True)
    assert first.headers["x-headrace-job-id"] == again.headers["x-headrace-job-id"]
    assert again.headers["idempotent-replayed"] == "true"
    assert "only once" in again.text
    running.wait_for_status("only once", "completed")


def a_stream_is_refused_as_anything_is(running: Running) -> None:
    response = _post(running, "none", "x", stream=True)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    wanted = {"scope": "tenant", "window": "total", "limit_usd": "0.00"}
    headers = {"authorization": f"Bearer {running.key}"}
    assert httpx.put(f"{running.url}/v1/budgets", json=wanted, headers=headers).is_success
    response = _post(running, "echo", "too dear", stream=True)
    assert (response.status_code, response.json()["error"]["type"]) == (402, "insufficient_quota")


def _post(
    running: Running,
    model: str,
    prompt: str,
    *,
    stream: bool = False,
    timeout: float = 30,
    headers: Mapping[str, str] | None = None,
) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "stream": stream}
    return httpx.post(
        f"{running.url}/v1/chat/completions",
        content=json.dumps(body),
        headers={"authorization": f"Bearer {running.key}", "content-type": "application/json", **(headers or {})},
        timeout=timeout,
    )


def _stream(running: Running, model: str, prompt: str, **more: Any) -> Any:  # Any: the client's Stream
    messages: Any = [{"role": "user", "content": prompt}]  # Any: the client's union
    return running.client.chat.completions.create(model=model, messages=messages, stream=True, **more)
