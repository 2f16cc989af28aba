"""The circuit breaker: one set of rules, in Python and in Redis, shared by processes or kept by each."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from api.local.valkey import EmbeddedValkey
from models.breakers import SharedBreakers, rules_of
from models.catalog import BreakerConfig
from models.circuit import Circuit, CircuitState, Look
from models.errors import FailureCode
from models.shared import Shared
from tests.stack import Database, Stack, wait_until
from workers.breaker import Breakers, Health, Passed, Refused, health_of

QUICK = BreakerConfig(window_s=10, min_calls=4, cooldown_s=0.2, max_cooldown_s=1, probe_lease_s=0.3)
RULES = rules_of(QUICK)
CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


def tripped(now: int = 0) -> Circuit:
    """A breaker that has just opened."""
    circuit = Circuit(RULES)
    circuit.record("", 4, 8, now)
    return circuit


def test_it_opens_at_the_error_rate_and_not_before_enough_calls() -> None:
    circuit = Circuit(RULES)
    assert circuit.record("", 3, 6, 0).state is CLOSED
    assert circuit.record("", 4, 0, 1).state is CLOSED
    assert circuit.record("", 1, 2, 2).state is OPEN


def test_old_failures_are_forgotten() -> None:
    circuit = Circuit(RULES)
    circuit.record("", 3, 6, 0)
    assert circuit.record("", 1, 2, RULES.window_ms + 1).state is CLOSED


@pytest.mark.parametrize(("limited", "state"), [(4, OPEN), (3, CLOSED)])
def test_rate_limits_count_half(limited: int, state: CircuitState) -> None:
    assert Circuit(RULES).record("", 4, limited, 0).state is state


def test_one_probe_at_a_time_closes_it_after_three_successes() -> None:
    circuit = tripped()
    assert circuit.admit("early", 199) == Look(OPEN, wait_ms=1)
    for number in range(3):
        assert circuit.admit(f"probe{number}", 200).probe
        assert not circuit.admit("other", 200).passes
        state = circuit.record(f"probe{number}", 1, 0, 200).state
    assert state is CLOSED
    assert circuit.admit("next", 201) == Look(CLOSED, passes=True, spotless=True)


def test_a_failed_probe_opens_it_for_twice_as_long() -> None:
    circuit = tripped()
    circuit.admit("probe", 200)
    assert circuit.record("probe", 1, 2, 200) == Look(OPEN, wait_ms=400)


def test_the_probe_of_a_dead_process_passes_to_another_and_its_late_report_counts_for_nothing() -> None:
    circuit = tripped()
    circuit.admit("dead", 200)
    assert not circuit.admit("next", 499).passes
    circuit.renew("dead", 499)
    assert not circuit.admit("next", 798).passes
    assert circuit.admit("next", 799).probe
    assert circuit.record("dead", 1, 2, 800).state is HALF_OPEN


def test_a_probe_that_says_nothing_makes_room_for_the_next() -> None:
    circuit = tripped()
    circuit.admit("probe", 200)
    circuit.record("probe", 0, 0, 200)
    assert circuit.admit("next", 200).probe


@pytest.mark.parametrize(
    ("code", "health"),
    [
        (FailureCode.TIMEOUT, Health.UNWELL),
        (FailureCode.CONNECTION, Health.UNWELL),
        (FailureCode.OVERLOADED, Health.UNWELL),
        (FailureCode.RATE_LIMITED, Health.RATE_LIMITED),
        (FailureCode.PROVIDER_REJECTED, Health.WELL),
        (FailureCode.CONTEXT_LENGTH_EXCEEDED, Health.UNKNOWN),
        (FailureCode.PROVIDER_AUTH, Health.UNKNOWN),
        (FailureCode.INTERNAL, Health.UNKNOWN),
    ],
)
def test_only_failures_that_speak_of_the_provider_count(code: FailureCode, health: Health) -> None:
    assert health_of(code) is health


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """A Valkey for this file's comparisons, whose keys differ."""
    valkey = EmbeddedValkey(tmp_path_factory.mktemp("valkey"), first_port=0)
    valkey.start()
    yield valkey
    valkey.stop()


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "record", "renew", "peek"]),
        st.sampled_from(["a", "b", ""]),
        st.integers(0, 5),
        st.integers(0, 10),
        st.sampled_from([0, 1, 99, 200, 301, 1001, 4000]),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_STEPS)
def test_the_script_in_redis_follows_the_same_rules(
    server: EmbeddedValkey, steps: list[tuple[str, str, int, int, int]]
) -> None:
    async def main() -> None:
        shared = Shared(server.url)
        store, circuit, now = SharedBreakers(shared, RULES), Circuit(RULES), 1_800_000_000_000
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
        try:
            for operation, token, calls, points, passed_ms in steps:
                now += passed_ms
                there = await store._ask("same", operation, token, calls, points, now)
                match operation:
                    case "admit":
                        here = circuit.admit(token, now)
                    case "record":
                        here = circuit.record(token, calls, points, now)
                    case "renew":
                        here = circuit.renew(token, now)
                    case _:
                        here = circuit.peek(now)
                assert there == here, (operation, token, calls, points, now)
        finally:
            await shared.close()

    asyncio.run(main())


def test_of_many_threads_that_ask_at_once_exactly_one_gets_the_probe(valkey: EmbeddedValkey) -> None:
    async def trip() -> None:
        async with breakers(valkey.url) as mine:
            for _ in range(4):
                await mine.record("llm", Passed(), Health.UNWELL)
        await asyncio.sleep(0.25)

    async def ask(index: int) -> bool:
        async with breakers(valkey.url) as mine:
            answers = await asyncio.gather(*(mine.admit("llm") for _ in range(10)))
            return any(isinstance(answer, Passed) for answer in answers)

    asyncio.run(trip())
    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(lambda index: asyncio.run(ask(index)), range(8))) == 1


@contextlib.asynccontextmanager
async def breakers(url: str, config: BreakerConfig = QUICK) -> AsyncIterator[Breakers]:
    """One process's breakers, kept up to date."""
    shared = Shared(url)
    mine = Breakers(shared, config, ["llm"])
    keeping = asyncio.create_task(mine.keep())
    try:
        yield mine
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await shared.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for is elsewhere
            await asyncio.sleep(0.02)


def test_what_one_process_learns_holds_for_all(valkey: EmbeddedValkey) -> None:
    async def main() -> None:
        async with breakers(valkey.url) as one, breakers(valkey.url) as other:
            assert isinstance(await other.admit("llm"), Passed)
            for _ in range(4):
                await one.record("llm", Passed(), Health.UNWELL)
            assert isinstance(await one.admit("llm"), Refused)
            await until(lambda: other.is_open("llm"))
            for _ in range(3):
                await until(lambda: other.wait_s("llm") == 0)
                passed = await other.admit("llm")
                assert isinstance(passed, Passed)
                assert passed.probe
                assert isinstance(await one.admit("llm"), Refused)
                await other.record("llm", passed, Health.WELL)
            assert await one.admit("llm") == Passed()

    asyncio.run(main())


def test_without_redis_each_process_keeps_the_rules_alone_and_shares_again_afterwards(valkey: EmbeddedValkey) -> None:
    async def main() -> None:
        async with breakers(valkey.url) as one, breakers(valkey.url) as other:
            for _ in range(4):
                await one.record("llm", Passed(), Health.UNWELL)
            await asyncio.to_thread(valkey.kill)
            assert isinstance(await one.admit("llm"), Refused)
            await until(lambda: one.wait_s("llm") == 0)
            for _ in range(3):
                passed = await one.admit("llm")
                assert isinstance(passed, Passed)
                assert passed.probe
                await one.record("llm", passed, Health.WELL)
            assert await one.admit("llm") == Passed()
            for _ in range(4):
                await other.record("llm", Passed(), Health.UNWELL)
            assert isinstance(await other.admit("llm"), Refused)
            assert await one.admit("llm") == Passed()
            valkey.wipe()
            await asyncio.to_thread(valkey.start)
            await until(lambda: not other.is_open("llm"))
            for _ in range(4):
                await one.record("llm", Passed(), Health.UNWELL)
            await until(lambda: other.is_open("llm"))

    asyncio.run(main())


def test_breakers_nobody_asks_for_expire(valkey: EmbeddedValkey) -> None:
    async def main() -> None:
        async with breakers(valkey.url) as mine:
            await mine.record("llm", Passed(), Health.UNWELL)

    asyncio.run(main())
    with redis.Redis.from_url(valkey.url) as client:
        (key,) = client.keys("headrace:breaker:*")
        assert 0 < client.pttl(key) <= 2 * (10_000 + 1_000 + 300)


def chat_answer(request: Request) -> Response:
    """OpenAI's answer to a chat: its last message."""
    text = request.get_json()["messages"][-1]["content"]
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return Response(
        response=json.dumps({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}),
        content_type="application/json",
    )


def remote(httpserver: HTTPServer, **fields: object) -> dict[str, object]:
    """A catalogue entry whose provider is a local HTTP server."""
    return {"provider": "openai", "base_url": httpserver.url_for("/v1"), "model": "m", "retries": 0, **fields}


def test_200_jobs_complete_while_the_primary_is_down_and_it_is_left_alone(
    stack: Stack, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two workers with four places have at most seven more calls under way when the tenth failure opens the
    breaker: those may still come in, for a quarter of a second, and no others may."""
    hits: list[float] = []

    def down(_request: Request) -> Response:
        hits.append(time.time())
        time.sleep(0.05)
        return Response(status=503)

    with HTTPServer(threaded=True) as server, redis.Redis.from_url(stack.settings["HEADRACE_REDIS_URL"]) as client:
        server.expect_request("/v1/chat/completions").respond_with_handler(down)
        stack.catalog({"primary": remote(server), "fallback": {"tier": "spare"}}, breaker={"cooldown_s": 60})
        stack.relay()
        stack.worker("mock,spare", concurrency=4)
        stack.worker("mock,spare", concurrency=4)
        database.submit([f"prompt {n}" for n in range(200)], route=["primary", "fallback"])
        wait_until(lambda: client.hget("headrace:breaker:primary", "state") == b"open")
        opened_at = float(client.hget("headrace:breaker:primary", "until") or 0) / 1000 - 60
        database.wait_until_finished()
    database.assert_each_completed_once(200)
    after = database.value(
        "SELECT count(*) FROM attempts WHERE outcome <> 'snoozed' AND finished_at > to_timestamp(%s)", opened_at
    )
    late = sum(hit > opened_at + 0.25 for hit in hits)
    with capsys.disabled():
        print(f"\nprimary down: {len(hits)} calls in all; {late} of {after} attempts after its breaker opened")
    assert len(hits) <= 10 + 7
    assert late <= 0.01 * after
    round_it = database.rows("SELECT DISTINCT error ->> 'code' AS code FROM attempts WHERE outcome = 'snoozed'")
    assert round_it == [{"code": "circuit_open"}]


def test_jobs_without_a_fallback_wait_for_the_probe_and_use_up_no_retry(
    stack: Stack, database: Database, httpserver: HTTPServer
) -> None:
    up = False

    def answer(request: Request) -> Response:
        return chat_answer(request) if up else Response(status=503)

    httpserver.expect_request("/v1/chat/completions").respond_with_handler(answer)
    breaker = {"min_calls": 4, "cooldown_s": 2, "max_cooldown_s": 2}
    stack.catalog({"only": remote(httpserver)}, breaker=breaker)
    stack.relay()
    stack.worker()
    database.submit([f"early {n}" for n in range(4)], route=["only"])
    wait_until(lambda: database.count("failed") == 4)
    database.submit([f"prompt {n}" for n in range(20)], route=["only"])
    put_off = "SELECT count(*) FROM jobs WHERE status = 'queued' AND next_attempt_at > created_at + interval '1 s'"
    wait_until(lambda: database.value(put_off) >= 15)
    up = True
    database.wait_until_finished()
    late = database.rows("SELECT status, max(attempt_count) AS most FROM jobs GROUP BY 1 ORDER BY 1")
    assert [row["status"] for row in late] == ["completed", "failed"]
    assert late[0]["most"] == 1
    assert database.value("SELECT count(*) FROM attempts") == 24
    assert database.count("completed") >= 19  # the first probe may have come before the server was up


def test_the_last_resort_answers_when_everything_failed(stack: Stack, database: Database) -> None:
    stack.catalog(
        {
            "down": {"retries": 0, "mock": {"error": "overloaded", "output_tokens": 0}},
            "strict": {"mock": {"error": "provider_rejected"}},
        },
        **{"tiers.mock.last_resort": {"text": "Later."}},
    )
    stack.relay()
    stack.worker()
    (degraded,) = database.submit(["prompt"], route=["down"])
    (refused,) = database.submit(["prompt"], route=["strict"])
    database.wait_until_finished()
    job = database.one("SELECT status, result, error FROM jobs WHERE id = %s", degraded)
    assert job == {
        "status": "completed",
        "result": {"text": "Later.", "finish_reason": "stop", "model": "last_resort", "degraded": True},
        "error": None,
    }
    assert database.value("SELECT error ->> 'code' FROM attempts WHERE job_id = %s", degraded) == "overloaded"
    assert database.value("SELECT status FROM jobs WHERE id = %s", refused) == "failed"


def test_answers_that_are_long_and_not_silent_close_no_llm_to_others(stack: Stack, database: Database) -> None:
    """The mock writes its prompt word by word: a long one takes longer than the LLM has."""
    writes = {"retries": 0, "timeout_s": 1, "mock": {"output": "{prompt}", "word_s": 0.05}}
    stack.catalog({"writer": writes}, breaker={"min_calls": 4})
    stack.relay()
    stack.worker(concurrency=16)
    database.submit(["word " * 100] * 12, route=["writer"])
    wait_until(lambda: database.count("failed") == 12)
    assert database.rows("SELECT DISTINCT error ->> 'code' AS code FROM jobs") == [{"code": "timeout"}]
    with redis.Redis.from_url(stack.settings["HEADRACE_REDIS_URL"]) as client:
        assert [client.hget(key, "state") for key in client.keys("headrace:breaker:*")] in ([], [None], [b"closed"])
    short = database.submit(["a few words"] * 5, route=["writer"])
    database.wait_until_finished()
    assert database.count("completed") == len(short)
