"""Whose turn it is in a worker process."""

import asyncio

import pytest

from workers.places import Places

pytestmark = pytest.mark.anyio


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_as_many_as_are_free_are_taken_at_once() -> None:
    places = Places(4)
    assert await places.take(3, single=False) == 3
    assert await places.take(3, single=True) == 1


async def test_rows_leave_a_sixteenth_free_for_single_jobs() -> None:
    places = Places(32)
    assert await places.take(99, single=False) == 30
    rows = asyncio.create_task(places.take(1, single=False))
    assert await places.take(99, single=True) == 2
    places.give_back(single=True)
    await settle()
    assert not rows.done()
    places.give_back(single=False)
    await settle()
    places.give_back(single=False)
    assert await rows == 1


async def test_a_single_job_goes_before_rows_that_asked_earlier() -> None:
    places = Places(15)
    await places.take(15, single=False)
    rows = asyncio.create_task(places.take(1, single=False))
    await settle()
    single = asyncio.create_task(places.take(1, single=True))
    await settle()
    places.give_back(single=False)
    await settle()
    assert (single.done(), rows.done()) == (True, False)
    places.give_back(single=False)
    assert await rows == 1


async def test_single_jobs_that_never_end_do_not_stop_the_rows() -> None:
    places = Places(15)
    await places.take(15, single=False)
    rows = asyncio.create_task(places.take(1, single=False))
    await settle()
    singles = [asyncio.create_task(places.take(1, single=True)) for _ in range(20)]
    await settle()
    for _ in range(2):
        places.give_back(single=False)
        await settle()
    assert sum(single.done() for single in singles) == 1  # an eighth
    assert rows.done()
    for single in singles:
        single.cancel()


@pytest.mark.parametrize("given", [False, True])
async def test_a_place_is_not_lost_with_the_one_who_waited_for_it(given: bool) -> None:
    places = Places(1)
    await places.take(1, single=True)
    waiting = asyncio.create_task(places.take(1, single=False))
    await settle()
    if given:
        places.give_back(single=True)  # and it is cancelled before it runs on
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    if not given:
        places.give_back(single=True)
    assert await asyncio.wait_for(places.take(1, single=False), 5) == 1
