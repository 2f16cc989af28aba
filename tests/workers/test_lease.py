"""The lease is current while beats succeed, and doubted otherwise; the reaper removes only who could have beaten."""

import asyncio
from datetime import UTC, datetime, timedelta

from models.database import create_engine, fetch_all
from models.ids import new_id
from models.process import REGISTER
from tests.proxy import Proxy
from tests.stack import Database
from workers.lease import Lease
from workers.reaper import Contact, Reaper

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_contact_lasts_until_there_is_a_gap() -> None:
    contact = Contact(timedelta(seconds=10))
    assert contact.extend(at(0)) == timedelta(0)
    assert contact.extend(at(10)) == timedelta(seconds=10)
    assert contact.extend(at(21)) == timedelta(0)  # a suspended machine, or a rescuer that hung
    assert contact.extend(at(30)) == timedelta(seconds=9)
    contact.lose()
    assert contact.extend(at(31)) == timedelta(0)
    assert contact.extend(at(20)) == timedelta(0)  # the clock was set back


def test_a_lease_is_current_only_while_postgres_can_be_used(database: Database) -> None:
    async def run() -> None:
        with Proxy(database.url) as proxy:
            engine = create_engine(proxy.url, name="test")
            changes: asyncio.Queue[bool] = asyncio.Queue()
            lease = Lease(
                engine,
                role="worker",
                name="test",
                queues=["mock"],
                capacity=1,
                lease_s=3,
                on_change=lambda: changes.put_nowait(lease.is_current),
            )
            assert not lease.is_current
            keeping = asyncio.create_task(lease.keep())
            assert await changes.get() is True
            lease.doubt()
            assert not lease.is_current
            assert [await changes.get(), await changes.get()] == [False, True]  # a beat at once says that all is well
            await asyncio.to_thread(proxy.close)
            assert await changes.get() is False
            await asyncio.to_thread(proxy.open)
            assert await changes.get() is True
            keeping.cancel()
            await engine.dispose()

    asyncio.run(run())


def test_a_lease_without_a_beat_for_half_of_it_is_doubted(database: Database) -> None:
    """As when the network swallows what is sent, and nothing fails."""

    async def run() -> None:
        engine = create_engine(database.url, name="test")
        doubted = asyncio.Event()

        def note() -> None:
            if not lease.is_current:
                doubted.set()

        async def hang() -> None:
            await asyncio.Event().wait()

        lease = Lease(engine, role="worker", name="test", queues=[], capacity=1, lease_s=1, on_change=note)
        keeping = asyncio.create_task(lease.keep(after_beat=hang))
        await doubted.wait()
        keeping.cancel()
        await engine.dispose()

    asyncio.run(run())


def test_a_reaper_removes_nothing_until_live_processes_had_time_to_beat(database: Database) -> None:
    """The server itself has been up for long."""

    async def run() -> None:
        engine = create_engine(database.url, name="test")
        identity = {"role": "worker", "name": "dead", "queues": [], "capacity": 1, "lease_s": -60}
        await fetch_all(engine, REGISTER, {"id": new_id(), **identity})
        freed = asyncio.Event()

        async def on_gone() -> None:
            freed.set()

        reaper = Reaper(engine, lease_s=1, on_gone=on_gone)
        await reaper.look()
        assert database.value("SELECT count(*) FROM processes") == 1
        while not freed.is_set():
            await reaper.look()
            await asyncio.sleep(0.05)
        assert database.value("SELECT count(*) FROM processes") == 0
        await engine.dispose()

    asyncio.run(run())
