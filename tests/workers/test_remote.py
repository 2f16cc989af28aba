"""Remote providers in real workers: what is cancelled is let go of, what is used is booked, forms are checked."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
import redis
from pytest_httpserver import HTTPServer

from models.ids import new_id
from models.tokens import most_tokens
from models.wakeups import CANCEL
from tests.stack import Database, Stack, wait_until
from tests.workers.providers.test_openai import USAGE, WHOLE
from tests.workers.test_structured import hostile
from workers.checking import CHECKERS

FORM = {
    "type": "json_schema",
    "json_schema": {"name": "person", "schema": {"type": "object", "required": ["age"]}},
}


class Dripping:
    """A server that streams one word after another for as long as it is listened to."""

    def __init__(self, listening: socket.socket) -> None:
        self.words = 0
        self.hung_up = threading.Event()
        self._listening = listening
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listening.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
            connection.settimeout(0.02)
            while not self._closed(connection):
                connection.sendall(b'data: {"choices": [{"delta": {"content": "hello "}}]}\n\n')
                self.words += 1
        self.hung_up.set()

    def _closed(self, connection: socket.socket) -> bool:
        try:
            return connection.recv(65536) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True


@pytest.fixture
def dripping() -> Iterator[Dripping]:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        yield Dripping(listening)


def test_cancelling_a_job_closes_the_socket_of_its_call_and_books_an_estimate(
    stack: Stack, database: Database, dripping: Dripping
) -> None:
    stack.catalog({"remote": {"provider": "openai", "base_url": dripping.url}})
    stack.relay()
    stack.worker()
    (job_id,) = database.submit(["prompt"], route=["remote"])
    wait_until(lambda: dripping.words >= 25)  # half a second: the first of them have been read
    database.rows("UPDATE jobs SET cancel_requested_at = now()")
    with redis.Redis.from_url(stack.settings["HEADRACE_REDIS_URL"]) as client:
        client.publish(CANCEL, job_id.hex)
    assert dripping.hung_up.wait(10)
    wait_until(lambda: database.count("cancelled") == 1, 10)
    attempt = database.one("SELECT outcome, input_tokens, output_tokens, usage_estimated FROM attempts")
    assert attempt["outcome"] == "cancelled"
    assert attempt["input_tokens"] == most_tokens(["prompt"])
    assert 0 < attempt["output_tokens"] <= 16
    assert attempt["usage_estimated"]
    assert database.value("SELECT count(*) FROM ledger_entries") == 1


def test_a_remote_answer_is_stored_with_the_providers_own_count(
    stack: Stack, database: Database, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/v1/chat/completions").respond_with_json(WHOLE)
    stack.catalog({"remote": {"provider": "openai", "base_url": httpserver.url_for("/v1")}})
    stack.relay()
    stack.worker()
    database.submit(["prompt"], route=["remote"])
    database.wait_until_finished()
    job = database.one("SELECT status, result ->> 'text' AS text, input_tokens, output_tokens FROM jobs")
    counts = (USAGE["prompt_tokens"], USAGE["completion_tokens"])
    assert tuple(job.values()) == ("completed", "hello", *counts)


def test_what_is_no_answer_goes_to_the_next_llm_and_books_what_came(
    stack: Stack, database: Database, httpserver: HTTPServer
) -> None:
    """An empty stream and a generation that breaks off are no completed jobs; only the text that came is paid."""
    bodies = {
        "empty": b"data: [DONE]\n\n",
        "role": b'data: {"choices":[{"delta":{"role":"assistant"},"finish_reason":null}]}\n\ndata: [DONE]\n\n',
        "broken": b'data: {"choices":[{"delta":{"content":"par"}}]}\n\n'
        b'data: {"choices":[{"delta":{},"finish_reason":"error"}]}\n\ndata: [DONE]\n\n',
    }
    prices = {"input_price": "1", "output_price": "2", "retries": 0}
    entries: dict[str, dict[str, object]] = {}
    for name, body in bodies.items():
        httpserver.expect_request(f"/{name}/chat/completions").respond_with_data(body, content_type="text/event-stream")
        entries[name] = {"provider": "openai", "base_url": httpserver.url_for(f"/{name}"), **prices}
    httpserver.expect_request("/good/chat/completions").respond_with_json(WHOLE)
    entries["good"] = {"provider": "openai", "base_url": httpserver.url_for("/good"), **prices}
    stack.catalog(entries)
    stack.relay()
    stack.worker()
    for name in bodies:
        database.submit(["prompt"], route=[name, "good"])
    database.wait_until_finished()
    jobs = database.rows("SELECT status, result ->> 'text' AS text, result ->> 'model' AS model FROM jobs")
    assert [tuple(job.values()) for job in jobs] == [("completed", "hello", "good")] * 3
    attempts = database.rows(
        "SELECT llm, error ->> 'code' AS code, input_tokens, output_tokens, usage_estimated FROM attempts"
        " WHERE llm <> 'good' ORDER BY llm"
    )
    assert [tuple(attempt.values()) for attempt in attempts] == [
        ("broken", "overloaded", most_tokens(["prompt"]), 1, True),
        ("empty", "overloaded", 0, 0, False),
        ("role", "overloaded", 0, 0, False),
    ]


def test_vectors_are_stored_in_the_form_that_was_asked_for_whichever_the_server_sends(
    stack: Stack, database: Database, httpserver: HTTPServer
) -> None:
    answer = {"data": [{"index": 0, "embedding": [0.5, 0.25]}], "usage": {"prompt_tokens": 1}}
    httpserver.expect_request("/v1/embeddings").respond_with_json(answer)
    entry = {"provider": "openai", "base_url": httpserver.url_for("/v1"), "embeddings": True}
    stack.catalog({"vectors": entry})
    stack.relay()
    stack.worker()
    for form in ("base64", "float"):
        database.submit(["x"], route=["vectors"], request={"input": ["x"], "encoding_format": form})
    database.wait_until_finished()
    jobs = database.rows("SELECT status, result -> 'embeddings' AS vectors, input_tokens, attempt_count FROM jobs")
    assert {str(job["vectors"]) for job in jobs} == {"['AAAAPwAAgD4=']", "[[0.5, 0.25]]"}
    assert {(job["status"], job["input_tokens"], job["attempt_count"]) for job in jobs} == {("completed", 1, 1)}


def test_a_form_that_is_not_met_fails_the_job_and_both_calls_are_booked(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {"mock": {"output": '{"name": "Ada"}', "input_tokens": 10, "output_tokens": 5}}})
    stack.relay()
    stack.worker()
    request = {"messages": [{"role": "user", "content": "who?"}], "max_tokens": 16, "response_format": FORM}
    database.submit(["who?"], route=["echo"], request=request)
    database.wait_until_finished()
    job = database.one("SELECT status, error, attempt_count, input_tokens, output_tokens FROM jobs")
    assert (job["status"], job["attempt_count"]) == ("failed", 1)
    assert job["error"]["code"] == "provider_rejected"
    assert '"age" is a required property' in job["error"]["message"]
    assert (job["input_tokens"], job["output_tokens"]) == (20, 10)


def test_a_call_that_was_sent_and_never_answered_is_booked_as_its_worst_case_and_names_no_place(
    stack: Stack, database: Database
) -> None:
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as silent,
        closing(socket.create_server(("127.0.0.1", 0))) as gone,
    ):
        urls = [f"http://127.0.0.1:{listening.getsockname()[1]}/v1" for listening in (silent, gone)]
        gone.close()
        once = {"provider": "openai", "retries": 0, "timeout_s": 1}
        missing = {"api_key_file": str(stack.directory / "no-such-key"), "base_url": urls[0]}
        stack.catalog(
            {
                "silent": {**once, "base_url": urls[0]},
                "gone": {**once, "base_url": urls[1]},
                "keyless": {**once, **missing},
            }
        )
        stack.relay()
        stack.worker()
        for llm in ("silent", "gone", "keyless"):
            database.submit(["prompt"], route=[llm])
        database.wait_until_finished()
    attempts = database.rows("SELECT llm, input_tokens, output_tokens, usage_estimated FROM attempts ORDER BY llm")
    assert [tuple(row.values()) for row in attempts] == [
        ("gone", 0, 0, False),
        ("keyless", 0, 0, False),
        ("silent", most_tokens(["prompt"]), 16, True),
    ]
    booked = database.one("SELECT input_tokens, output_tokens FROM ledger_entries")
    assert tuple(booked.values()) == (most_tokens(["prompt"]), 16)
    messages = database.rows("SELECT error ->> 'message' AS said FROM jobs ORDER BY route")
    assert [row["said"] for row in messages] == [
        "the provider cannot be reached",
        "the provider is not set up here",
        "no answer within 1 s",
    ]
    logs = "".join(log.read_text(errors="replace") for log in stack.directory.glob("*.log"))
    assert "no-such-key" in logs
    assert "Connect call failed" in logs


def test_hostile_schemas_of_one_tenant_neither_delay_anothers_answer_nor_close_an_llm(
    stack: Stack, database: Database
) -> None:
    """Twenty answers of one tenant that nobody can check, and another's that waits behind at most a few of them."""
    answers = {"mock": {"output": '{"age": 7}', "input_tokens": 10, "output_tokens": 5}, "timeout_s": 1}
    stack.catalog({"llm": answers}, breaker={"min_calls": 4})
    stack.relay()
    stack.worker(concurrency=30)
    neighbour = new_id()
    database.rows("INSERT INTO tenants (id, name) VALUES (%s, 'neighbour')", neighbour)
    asked = {"messages": [{"role": "user", "content": "who?"}], "max_tokens": 16}
    for number in range(20):
        schema = {"type": "json_schema", "json_schema": {"schema": hostile(number)}}
        database.submit(["x"], route=["llm"], request={**asked, "response_format": schema})
    honest = [
        *database.submit(["x"] * 3, route=["llm"], request={**asked, "response_format": FORM}, tenant_id=neighbour)
    ]
    stack.wake()
    database.wait_until_finished()
    ended = database.rows("SELECT id, tenant_id, status, error, attempt_count FROM jobs ORDER BY finished_at")
    for job in ended:
        if job["tenant_id"] == neighbour:
            assert (job["status"], job["attempt_count"]) == ("completed", 1)
        else:
            assert job["error"]["code"] == "provider_rejected"
            assert "JSON Schema cannot be used" in job["error"]["message"]
    places = [place for place, job in enumerate(ended) if job["id"] in honest]
    assert len(places) == 3
    assert places[0] <= 2 * CHECKERS
    assert database.value("SELECT count(*) FROM attempts WHERE outcome = 'snoozed'") == 0
