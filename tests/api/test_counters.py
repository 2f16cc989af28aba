"""The counters of rate limits on a real Valkey: exact while it is there, never in the way when it is not."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from time import monotonic

import pytest
import redis.asyncio as redis

from api.counters import LOOK_AGAIN_S, PREFIX, Charge, Counters, LocalCounters
from api.local.ports import choose_port
from api.local.valkey import EmbeddedValkey
from models.ids import new_id
from models.plans import SHIPPED_PLANS
from tests.api.acting import Clock, until

pytestmark = pytest.mark.anyio

PRO = SHIPPED_PLANS["pro"].limits
TIMEOUT_S = 0.4
PATIENT_S = 5.0


@pytest.fixture
def subject() -> str:
    """A key that nobody else counts."""
    return new_id().hex


@pytest.fixture
async def counters(api_redis_url: str, clock: Clock) -> AsyncIterator[Counters]:
    opened = Counters(api_redis_url, timeout_s=PATIENT_S, clock=clock)
    yield opened
    await opened.close()


@pytest.fixture
async def mortal(valkey: EmbeddedValkey) -> AsyncIterator[Counters]:
    """Counters in a Valkey of the test's own, to be stopped."""
    opened = Counters(valkey.url, timeout_s=PATIENT_S)
    yield opened
    await opened.close()


@pytest.fixture
async def hasty(valkey: EmbeddedValkey) -> AsyncIterator[Counters]:
    """Counters that do not wait long for that Valkey."""
    opened = Counters(valkey.url, timeout_s=TIMEOUT_S)
    yield opened
    await opened.close()


async def test_the_script_and_the_rule_agree_for_an_hour_of_random_requests(
    counters: Counters, clock: Clock, subject: str
) -> None:
    chance = random.Random(11)
    local = LocalCounters()
    for _ in range(600):
        clock.now_ms += chance.choice([0, 1, 500, 7_000, 61_000, 200_000, -3_000])
        wanted = Charge(subject, PRO, chance.choice([1, 500, 20_000, 99_000, -700, -150_000]))
        assert await counters.count(wanted) == local.count(wanted, clock.now_ms), wanted


async def test_requests_that_arrive_together_are_counted_one_after_another(counters: Counters, subject: str) -> None:
    other = f"{subject}-other"
    wanted = [Charge(one, SHIPPED_PLANS["free"].limits, 900) for one in [subject, other] * 15]
    counts = await asyncio.gather(*map(counters.count, wanted))
    assert [count.accepted for count in counts] == [True] * 20 + [False] * 10
    assert [count.windows[1].used for count in counts[::2]] == [*range(900, 9001, 900)] + [9000] * 5


async def test_what_is_no_longer_needed_expires(counters: Counters, subject: str, api_redis_url: str) -> None:
    await counters.count(Charge(subject, PRO, 1))
    async with redis.Redis.from_url(api_redis_url) as client:
        lives_ms = await client.pttl(PREFIX + subject)
    assert 0 < lives_ms <= 2 * 86_400_000


async def test_clients_of_their_own_accept_exactly_the_quota_together(api_redis_url: str, subject: str) -> None:
    """The clock is Redis's own, whatever those of the clients say."""
    clients = [Counters(api_redis_url, timeout_s=PATIENT_S) for _ in range(4)]
    wanted = Charge(subject, PRO, 10)
    counts = await asyncio.gather(*(client.count(wanted) for client in clients for _ in range(60)))
    assert sum(count.accepted for count in counts) == 100
    for client in clients:
        await client.close()


async def test_a_valkey_that_lost_its_scripts_is_told_them_again(mortal: Counters, valkey: EmbeddedValkey) -> None:
    await mortal.count(Charge("k", PRO, 1))
    async with redis.Redis.from_url(valkey.url) as client:
        await client.script_flush()
    assert (await mortal.count(Charge("k", PRO, 1))).windows[0].used == 2
    assert mortal.shared


async def test_a_process_alone_goes_on_from_what_was_counted_together(mortal: Counters, valkey: EmbeddedValkey) -> None:
    for _ in range(60):
        await mortal.count(Charge("k", PRO, 1))
    await asyncio.to_thread(valkey.stop)
    counts = [await mortal.count(Charge("k", PRO, 1)) for _ in range(60)]
    assert not mortal.shared
    assert [count.accepted for count in counts] == [True] * 40 + [False] * 20


async def test_a_stopped_valkey_is_asked_again_when_it_is_back(mortal: Counters, valkey: EmbeddedValkey) -> None:
    await mortal.count(Charge("k", PRO, 1))
    await asyncio.to_thread(valkey.stop)
    assert (await mortal.count(Charge("k", PRO, 1))).accepted
    assert not mortal.shared
    await asyncio.to_thread(valkey.start)

    async def is_shared() -> bool:
        return mortal.shared

    await until(is_shared)
    await mortal.count(Charge("new", PRO, 1))
    async with redis.Redis.from_url(valkey.url) as client:
        assert await client.hget(f"{PREFIX}new", "requests-per-minute:used") == b"1"


async def test_a_valkey_that_hangs_delays_one_request_and_no_other(hasty: Counters, valkey: EmbeddedValkey) -> None:
    """The first waits for the time-out; those after it do not even try, and all are counted."""
    await hasty.count(Charge("k", PRO, 1))
    assert valkey.pid is not None
    os.kill(valkey.pid, signal.SIGSTOP)
    try:
        began = monotonic()
        first = await hasty.count(Charge("k", PRO, 1))
        assert monotonic() - began >= TIMEOUT_S
        assert not hasty.shared
        seen = monotonic()
        later = [await hasty.count(Charge("k", PRO, 1)) for _ in range(50)]
        assert monotonic() - seen < 50 * TIMEOUT_S
        assert [first.accepted, *(count.accepted for count in later)] == [True] * 51
        await asyncio.sleep(2 * (LOOK_AGAIN_S + TIMEOUT_S))
        assert not hasty.shared
    finally:
        os.kill(valkey.pid, signal.SIGCONT)

    async def is_shared() -> bool:
        return hasty.shared

    await until(is_shared)
    after = await hasty.count(Charge("k", PRO, 1))
    assert after.windows[0].used in {2, 3}  # whether or not Valkey did, at last, what it was asked before it hung


async def test_an_address_where_nothing_listens_is_no_error() -> None:
    port = choose_port("127.0.0.1", [])
    counters = Counters(f"redis://127.0.0.1:{port}/0", timeout_s=TIMEOUT_S)
    assert (await counters.count(Charge("k", PRO, 1))).accepted
    await counters.close()
