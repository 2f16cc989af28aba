"""Whose file is next: tenants rotate, and none holds every place."""

import asyncio
from uuid import UUID

import pytest

from api.batches.turns import Places

pytestmark = pytest.mark.anyio

A, B, C = (UUID(int=number) for number in (1, 2, 3))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Readers:
    """Files that are read until they are told to end; ``begun`` has the tenants in the order of their turns."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self.begun: list[UUID] = []
        self._ends: list[asyncio.Event] = []

    def start(self, tenant_id: UUID) -> "asyncio.Task[None]":
        return asyncio.create_task(self._read(tenant_id))

    async def end(self, place: int) -> None:
        self._ends[place].set()
        await settle()

    async def _read(self, tenant_id: UUID) -> None:
        async with self._places.one_of(tenant_id):
            self.begun.append(tenant_id)
            self._ends.append(asyncio.Event())
            await self._ends[-1].wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_tenant_served_least_recently_is_next() -> None:
    readers = Readers(Places(1, 1))
    tasks = [readers.start(tenant_id) for tenant_id in (A, A, A, B, B, C)]
    await settle()
    for place in range(6):
        await readers.end(place)
    assert readers.begun == [A, B, C, A, B, A]
    await asyncio.gather(*tasks)


async def test_no_tenant_has_every_place() -> None:
    readers = Readers(Places(3, 2))
    tasks = [readers.start(A) for _ in range(5)]
    await settle()
    assert readers.begun == [A, A]
    tasks.append(readers.start(B))
    await settle()
    assert readers.begun == [A, A, B]
    await readers.end(0)
    assert readers.begun == [A, A, B, A]
    for place in range(1, 6):
        await readers.end(place)
    await asyncio.gather(*tasks)


async def test_who_gives_up_leaves_its_place_to_the_next() -> None:
    readers = Readers(Places(1, 1))
    first, second, third = readers.start(A), readers.start(B), readers.start(C)
    await settle()
    second.cancel()
    await settle()
    assert readers.begun == [A]
    await readers.end(0)
    assert readers.begun == [A, C]
    third.cancel()
    await settle()
    last = readers.start(B)
    await settle()
    assert readers.begun == [A, C, B]
    await readers.end(2)
    await asyncio.gather(first, second, third, last, return_exceptions=True)


async def test_who_gives_up_at_the_moment_of_its_turn_loses_no_place() -> None:
    readers = Readers(Places(1, 1))
    first, second, third = readers.start(A), readers.start(B), readers.start(C)
    await settle()
    readers._ends[0].set()
    while not readers._places._held[B]:  # noqa: ASYNC110 - it is lent, and not awake yet
        await asyncio.sleep(0)
    second.cancel()
    await settle()
    assert readers.begun[-1] == C
    await readers.end(len(readers.begun) - 1)
    await asyncio.gather(first, second, third, return_exceptions=True)
