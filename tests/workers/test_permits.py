"""``max_concurrency``: never more calls in flight than allowed, over all processes, whatever dies."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from threading import Lock

import pytest
import redis
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from api.local.valkey import EmbeddedValkey
from models.catalog import Catalog
from models.shared import Shared
from tests.stack import Database, Stack, kill, wait_until
from tests.workers.test_breaker import chat_answer, remote
from workers import permits
from workers.permits import Permits

CATALOG = Catalog.model_validate(
    {
        "tiers": {"t": {"queue": "t", "pool": "cpu"}},
        "llms": {
            name: {
                "tier": "t",
                "provider": "mock",
                "context_window": 10,
                "input_price": 0,
                "output_price": 0,
                "max_concurrency": most,
            }
            for name, most in (("few", 3), ("any", None))
        },
    }
)


@contextlib.asynccontextmanager
async def process(url: str) -> AsyncIterator[Permits]:
    """One process's permits, kept renewed."""
    shared = Shared(url)
    mine = Permits(shared, CATALOG)
    keeping = asyncio.create_task(mine.keep())
    try:
        yield mine
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await shared.close()


class Gauge:
    """How many are inside, and the most there were."""

    def __init__(self) -> None:
        self.inside = self.most = self.calls = 0

    async def call(self, holder: Permits, llm: str = "few", seconds: float = 0.02) -> bool:
        async with holder.hold(llm) as held:
            if held:
                self.inside += 1
                self.most, self.calls = max(self.most, self.inside), self.calls + 1
                await asyncio.sleep(seconds)
                self.inside -= 1
            return held


def test_two_processes_together_keep_to_the_limit_and_use_it(valkey: EmbeddedValkey) -> None:
    async def main() -> Gauge:
        gauge = Gauge()
        async with process(valkey.url) as one, process(valkey.url) as other:
            await asyncio.gather(*(gauge.call(holder) for holder in (one, other) for _ in range(20)))
        return gauge

    gauge = asyncio.run(main())
    assert gauge.most == 3
    assert gauge.calls >= 30


def test_an_llm_without_a_limit_needs_no_permit(valkey: EmbeddedValkey) -> None:
    async def main() -> Gauge:
        gauge = Gauge()
        async with process(valkey.url) as one:
            await asyncio.gather(*(gauge.call(one, "any") for _ in range(50)))
        return gauge

    assert asyncio.run(main()).most == 50


def test_who_finds_no_permit_in_time_is_told_so_and_takes_none(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(permits, "WAIT_S", 0.1)

    async def main() -> list[bool]:
        gauge = Gauge()
        async with process(valkey.url) as one, process(valkey.url) as other:
            first = [asyncio.create_task(gauge.call(one, seconds=1)) for _ in range(3)]
            await asyncio.sleep(0.3)
            late = await asyncio.gather(*(gauge.call(other) for _ in range(3)))
            await asyncio.gather(*first)
            await asyncio.sleep(0.1)
            return [*late, *await asyncio.gather(*(gauge.call(other) for _ in range(3)))]

    assert asyncio.run(main()) == [False] * 3 + [True] * 3


def test_a_permit_is_renewed_while_it_is_held(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permits, "LEASE_S", 0.3)

    async def main() -> None:
        gauge = Gauge()
        async with process(valkey.url) as one:
            calls = [asyncio.create_task(gauge.call(one, seconds=1.2)) for _ in range(3)]
            await asyncio.sleep(1)
            with redis.Redis.from_url(valkey.url) as client:
                assert len(client.zrangebyscore("headrace:permits:few", time.time() * 1000, "+inf")) == 3
            await asyncio.gather(*calls)

    asyncio.run(main())


def test_without_redis_each_process_keeps_to_the_limit(valkey: EmbeddedValkey) -> None:
    async def main() -> tuple[Gauge, Gauge]:
        gauges = Gauge(), Gauge()
        async with process(valkey.url) as one, process(valkey.url) as other:
            await gauges[0].call(one)
            await asyncio.to_thread(valkey.stop)
            calls = (gauge.call(holder) for gauge, holder in zip(gauges, (one, other), strict=True) for _ in range(10))
            await asyncio.gather(*calls)
        return gauges

    assert [gauge.most for gauge in asyncio.run(main())] == [3, 3]


def test_workers_never_call_a_provider_more_often_at_once_and_a_dead_ones_permits_come_free(
    stack: Stack, database: Database
) -> None:
    lock, gauge = Lock(), Gauge()

    def answer(request: Request) -> Response:
        with lock:
            gauge.inside += 1
            gauge.most = max(gauge.most, gauge.inside)
        time.sleep(0.1)
        with lock:
            gauge.inside -= 1
        return chat_answer(request)

    with HTTPServer(threaded=True) as server:
        server.expect_request("/v1/chat/completions").respond_with_handler(answer)
        stack.catalog({"few": remote(server, max_concurrency=3)})
        stack.relay()
        victim = stack.worker()
        stack.worker()
        database.submit([f"prompt {n}" for n in range(60)], route=["few"])
        wait_until(lambda: database.count("completed") >= 20)
        kill(victim)
        database.wait_until_finished()
    database.assert_each_completed_once(60)
    assert gauge.most == 3


def test_a_renewal_that_comes_late_revives_no_permit_that_was_given_back(valkey: EmbeddedValkey) -> None:
    """A script may run after its caller took Redis for away, gave its permit back and went on."""
    with redis.Redis.from_url(valkey.url) as client:
        key = "headrace:permits:few"
        assert client.eval(permits.ACQUIRE, 1, key, "mine", 1, 10_000)
        client.eval(permits.RELEASE, 1, key, "mine")
        assert client.eval(permits.RENEW, 1, key, 10_000, "mine") == [b"mine"]
        assert client.eval(permits.ACQUIRE, 1, key, "another", 1, 10_000)


def test_calls_that_outlived_their_permits_in_a_pause_are_counted_again(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(permits, "WAIT_S", 0.1)
    monkeypatch.setattr(permits, "LEASE_S", 0.4)

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            shared = Shared(valkey.url)
            stack.push_async_callback(shared.close)
            paused = Permits(shared, CATALOG)  # nothing renews its permits
            other = await stack.enter_async_context(process(valkey.url))
            running = contextlib.AsyncExitStack()
            held = [await running.enter_async_context(paused.hold("few")) for _ in range(3)]
            await asyncio.sleep(0.5)
            async with contextlib.AsyncExitStack() as others:
                held += [await others.enter_async_context(other.hold("few")) for _ in range(3)]
                assert all(held)
                await paused._renew("few")
            keeping = asyncio.create_task(paused.keep())
            async with other.hold("few") as one_more:
                assert not one_more  # three still run
            await running.aclose()
            one_more = False
            while not one_more:  # within the time limit of a test
                async with other.hold("few") as one_more:
                    pass
            keeping.cancel()

    asyncio.run(main())


def test_a_call_that_ends_while_it_is_counted_again_leaves_no_permit(valkey: EmbeddedValkey) -> None:
    async def main() -> int:
        shared = Shared(valkey.url)
        holder = Permits(shared, CATALOG)
        run = shared.run

        async def ends_meanwhile(script: str, key: str, *arguments: str | float) -> object:
            if script == permits.RECOUNT:
                holder._held["few"].clear()
            return await run(script, key, *arguments)

        holder._held["few"].add("gone")
        shared.run = ends_meanwhile  # type: ignore[method-assign]  # so that a moment can be chosen
        await holder._renew("few")
        await asyncio.gather(*holder._errands)
        counted = await run("return redis.call('ZCARD', KEYS[1])", "headrace:permits:few")
        await shared.close()
        return int(counted)

    assert asyncio.run(main()) == 0
