"""Refusals in real workers: which LLM is asked next, with what, and what attempts show of it."""

import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from tests.stack import Database, Stack, kill, wait_until
from tests.workers.providers.test_openai import USAGE, WHOLE
from tests.workers.providers.vendor_errors import anthropic, openai
from tests.workers.providers.vendor_refusals import unsupported

Json = dict[str, Any]  # Any: JSON
CREDIT = anthropic("Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing.")
GONE = openai("The model x does not exist", code="model_not_found")
LONG = openai("This model's maximum context length is 64 tokens.", code="context_length_exceeded")


def answer(status: int, body: object, **headers: str) -> Response:
    return Response(json.dumps(body), status, headers, content_type="application/json")


def says(status: int, body: object) -> Callable[[Request], Response]:
    return lambda _: answer(status, body)


def refuses_temperature(request: Request) -> Response:
    return answer(400, unsupported("temperature")) if "temperature" in request.get_json() else answer(200, WHOLE)


def takes_64_tokens(request: Request) -> Response:
    return answer(400, LONG) if request.get_json()["max_tokens"] > 64 else answer(200, WHOLE)


class LimitedOnce:
    """A server whose first call of each prompt meets a rate limit."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, request: Request) -> Response:
        prompt = request.get_json()["messages"][0]["content"]
        if prompt in self._seen:
            return answer(200, WHOLE)
        self._seen.add(prompt)
        return answer(429, openai("slow down"), **{"retry-after-ms": "1"})


def serve(httpserver: HTTPServer, **handlers: Callable[[Request], Response]) -> dict[str, Json]:
    """The entries of LLMs that these functions answer for."""
    for name, handler in handlers.items():
        httpserver.expect_request(f"/{name}/chat/completions").respond_with_handler(handler)
    return {name: {"provider": "openai", "base_url": httpserver.url_for(f"/{name}"), "retries": 2} for name in handlers}


def run(database: Database, url: str, llm: str, **fields: object) -> Json:
    """Submit a job and wait for its end."""
    headers = {"Authorization": f"Bearer {database.api_key}", "Prefer": "wait=30"}
    body = {"prompt": "hi", "model": llm, "fallbacks": [], "max_tokens": 50, **fields}
    response = httpx.post(f"{url}/v1/jobs", json=body, headers=headers, timeout=60)
    assert response.status_code == 200, response.text
    job: Json = response.json()
    return job


def shown(job: Json) -> list[tuple[str, str, list[str]]]:
    """Of each attempt its LLM, its outcome and what was changed for it."""
    return [(attempt["model"], attempt["outcome"], attempt["adapted"]) for attempt in job["attempts"]]


def test_what_is_not_the_callers_fault_falls_back_and_what_changes_is_shown(
    stack: Stack, database: Database, httpserver: HTTPServer
) -> None:
    entries = serve(
        httpserver,
        poor=says(400, CREDIT),
        retired=says(404, GONE),
        gone=says(410, GONE),
        odd=says(498, openai("Flex tier capacity exceeded")),
        fixed=refuses_temperature,
        small=takes_64_tokens,
        busy=LimitedOnce(),
        good=says(200, WHOLE),
    )
    stack.catalog(entries)
    stack.relay()
    stack.worker()
    _, url = stack.api()

    for llm in ("poor", "retired", "gone", "odd"):  # never sent again to the same LLM
        job = run(database, url, llm, fallbacks=["good"])
        assert shown(job) == [(llm, "failed", []), ("good", "completed", [])]
        alone = run(database, url, llm)
        assert (alone["status"], len(alone["attempts"])) == ("failed", 1)
    assert alone["error"] == {
        "code": "overloaded",
        "message": "the provider failed or is overloaded (HTTP 498)",
        "retryable": False,
    }

    for _ in range(2):
        job = run(database, url, "fixed", temperature=0)
        assert shown(job) == [("fixed", "completed", ["temperature"])]
        assert job["usage"]["total_tokens"] == USAGE["prompt_tokens"] + USAGE["completion_tokens"]  # type: ignore[operator]
    assert shown(run(database, url, "fixed")) == [("fixed", "completed", [])]
    asked = [request for request, _ in httpserver.log if request.path.startswith("/fixed/")]
    assert ["temperature" in request.get_json() for request in asked] == [True, False, False, False]

    failed = run(database, url, "small", max_tokens=100)
    assert (failed["error"]["code"], len(failed["attempts"])) == ("context_length_exceeded", 1)
    adjusted = run(database, url, "small", max_tokens=100, adjust=True)
    assert shown(adjusted) == [
        ("small", "failed", []),
        ("small", "failed", ["max_tokens -> 70"]),
        ("small", "completed", ["max_tokens -> 49"]),
    ]
    larger = run(database, url, "small", max_tokens=100, adjust=True, fallbacks=["good"])
    assert shown(larger)[-1][:2] == ("small", "completed")  # no LLM of the route has a larger window

    kept = run(database, url, "busy", prompt="a")
    assert shown(kept) == [("busy", "failed", []), ("busy", "completed", [])]
    lowered = run(database, url, "busy", prompt="b", priority="high", adjust=True)
    assert shown(lowered) == [("busy", "failed", []), ("busy", "completed", ["priority -> normal"])]
    onward = run(database, url, "busy", prompt="c", adjust=True, fallbacks=["good"])
    assert shown(onward) == [("busy", "failed", []), ("good", "completed", ["priority -> low"])]
    assert database.rows("SELECT priority FROM jobs WHERE request ? 'adjust' ORDER BY id DESC LIMIT 2") == [
        {"priority": 2},
        {"priority": 1},
    ]
    assert database.value("SELECT count(*) FROM attempts WHERE outcome IS NULL") == 0


@pytest.mark.parametrize("adjust", [False, True])
def test_a_worker_that_dies_between_a_refusal_and_the_next_form_loses_and_doubles_nothing(
    stack: Stack, database: Database, httpserver: HTTPServer, adjust: bool
) -> None:
    dead, hanging = threading.Event(), threading.Event()

    def refuses_then_hangs(request: Request) -> Response:
        if "temperature" in request.get_json():
            return answer(400, unsupported("temperature"))
        if not dead.is_set():
            hanging.set()
            dead.wait(30)
        return answer(200, WHOLE)

    stack.catalog(serve(httpserver, fixed=refuses_then_hangs))
    stack.relay()
    victim = stack.worker()
    request = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 16, "temperature": 0.5, "adjust": adjust}
    database.submit(["hi"], route=["fixed"], request=request, reserved_usd="0.01")
    assert hanging.wait(30)
    kill(victim)
    dead.set()
    stack.worker()
    database.wait_until_finished()
    assert database.one("SELECT status, attempt_count FROM jobs") == {"status": "completed", "attempt_count": 2}
    attempts = database.rows("SELECT outcome, adapted, usage_estimated FROM attempts ORDER BY number")
    assert [tuple(attempt.values()) for attempt in attempts] == [
        ("lost", None, True),
        ("completed", ["temperature"], False),
    ]
    wait_until(lambda: database.value("SELECT count(*) FROM ledger_entries") == 2)
    booked = "SELECT j.cost_usd + coalesce(j.cost_rest_usd, 0) = (SELECT sum(cost_usd) FROM ledger_entries) FROM jobs j"
    assert database.value(booked)
