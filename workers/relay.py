"""The relay: publishes what is due, in fair order, a bounded window per queue.

    python -m workers.relay

Jobs are marked as published and their message is sent inside one transaction: a publish that fails leaves
them due, a crash in between sends a message twice, and the guarded claim makes the copy a no-op. Several
relays may run; each queue has one publisher of single jobs, and one of rows, at a time.
"""

import asyncio
import signal
import socket
from collections.abc import Coroutine
from contextlib import suppress
from os import getpid
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from models.catalog import Catalog, load_catalog
from models.database import create_engine, describe, fetch_all
from models.dispatch import UNDISPATCH_STALE
from models.ids import new_id
from models.pauses import keep_pauses_short
from models.process import SELECT_BACKLOG, SELECT_LIVE
from models.settings import read_settings
from models.startup import ending_in_one_line, require_stores
from models.telemetry import configure_logging
from models.wakeups import DUE, ROOM, Wakeups
from workers.batchkeeper import BatchKeeper
from workers.celery import app
from workers.dispatcher import Dispatcher
from workers.duty import Duty, keep_performing
from workers.feeder import Feeder
from workers.lease import Lease
from workers.maintenance import Maintenance
from workers.publisher import BrokerUnavailable, Publisher
from workers.reaper import Reaper
from workers.rescue import Rescuer
from workers.settings import RelaySettings
from workers.stalls import end_if_stalled
from workers.windows import Windows

_PAUSE_AFTER_ERROR_S = 1.0
_FEED_PAUSE_S = 0.05
_ROWS_PAUSE_S = 0.01
"""Rows of batches are looked at this often at most: fewer looks, and more rows at each."""

DISPATCH_PARAMETERS = {"plan_cache_mode": "force_generic_plan"}
"""The values of what dispatches and feeds come in arrays, so plans do not depend on them: to plan each time would take
longer than to look."""

_LOST_MESSAGE_FACTOR = 20
"""A job whose message is lost while its queue is never empty waits this many times longer."""

_LOOKS_BEFORE_TELLING = 2
_MOST_COUNTED = 1000

log = structlog.get_logger()


class Relay:
    """One relay process: feeds and keeps batches, dispatches, publishes lost messages again, and rescues."""

    def __init__(self, settings: RelaySettings, catalog: Catalog, publisher: Publisher) -> None:
        self._settings = settings
        self._catalog = catalog
        self._queues = list(catalog.queues)
        self._local_queues = catalog.local_queues
        self._publisher = publisher
        self._engine = create_engine(settings.database_url, name="relay", pool_size=4)
        # What may take long has connections of its own, so that it cannot take the last one of what is urgent.
        self._slow_engine = create_engine(settings.database_url, name="relay", pool_size=3)
        # A mark that a crash of Postgres undoes is a message sent twice, and rows that it undoes are fed again: not
        # worth a disk flush.
        self._dispatch_engine = create_engine(
            settings.database_url,
            name="relay",
            pool_size=3,
            synchronous_commit=False,
            parameters=DISPATCH_PARAMETERS,
        )
        self._writer = new_id()
        self._feeder = Feeder(self._dispatch_engine, settings)
        self._windows = Windows(self._dispatch_engine, self._queues)
        self._singles, self._rows = (
            Dispatcher(self._dispatch_engine, publisher, settings, self._windows, rows=rows) for rows in (False, True)
        )
        self._woken = asyncio.Event()
        self._fed = asyncio.Event()
        self._hungry = asyncio.Event()
        self._unserved: dict[str, int] = {}

    async def run(self) -> None:
        """Work until cancelled."""
        wakeups = Wakeups(self._settings.redis_url)
        lease = Lease(
            self._engine,
            role="relay",
            name=f"relay-{getpid()}@{socket.gethostname()}",
            queues=self._queues,
            capacity=0,
            lease_s=self._settings.lease_s,
        )
        rescuer = Rescuer(
            self._engine,
            wakeups,
            max_deliveries=self._settings.max_deliveries,
            search_s=self._settings.lease_s / 2,
            local_queues=self._local_queues,
            writer=self._writer,
            catalog=self._catalog,
        )
        reaper = Reaper(self._engine, lease_s=self._settings.lease_s, on_gone=rescuer.rescue)
        keeper = BatchKeeper(self._engine, self._slow_engine, wakeups, writer=self._writer)
        maintenance = Maintenance(self._engine, self._slow_engine, wakeups, writer=self._writer, free=rescuer.free)
        try:
            async with asyncio.TaskGroup() as duties:
                duties.create_task(end_if_stalled(self._settings.stalled_s, self._settings.alive_file))
                duties.create_task(lease.keep())
                duties.create_task(self._listen(wakeups))
                duties.create_task(self._dispatch_forever(self._singles, self._woken))
                duties.create_task(self._dispatch_forever(self._rows, self._fed, pause_s=_ROWS_PAUSE_S))
                duties.create_task(self._feed_forever())
                for duty in (
                    Duty("reap", self._settings.lease_s / Reaper.LOOKS, reaper.look),
                    Duty("rescue", self._settings.lease_s / 6, rescuer.look),
                    Duty("stale", self._settings.republish_s / 2, self._republish_stale),
                    Duty("unserved", self._settings.lease_s / 2, self._tell_of_unserved),
                    *keeper.duties(self._settings.poll_s),
                    *maintenance.duties(self._settings.lease_s / 6),
                ):
                    duties.create_task(keep_performing(duty))
        finally:
            await keeper.close()
            await lease.give_back()
            await wakeups.close()
            await self._engine.dispose()
            await self._slow_engine.dispose()
            await self._dispatch_engine.dispose()

    async def _dispatch_forever(self, dispatcher: Dispatcher, woken: asyncio.Event, pause_s: float = 0) -> None:
        while True:
            woken.clear()
            try:
                await dispatcher.dispatch()
            except _OUTSIDE_ERRORS as error:
                log.warning("relay.dispatch_failed", error=describe(error))
                await asyncio.sleep(_PAUSE_AFTER_ERROR_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.poll_s):
                    await woken.wait()
            await asyncio.sleep(pause_s)  # single jobs are looked at first

    async def _feed_forever(self) -> None:
        """Keep the buffers of batches' rows filled."""
        while True:
            self._hungry.clear()
            meal = None
            try:
                meal = await self._feeder.feed()
            except _OUTSIDE_ERRORS as error:
                log.warning("relay.feed_failed", error=describe(error))
            if meal is not None and meal.rows:
                self._fed.set()
            pause_s = _FEED_PAUSE_S / 5 if meal is not None and meal.ran_dry else _FEED_PAUSE_S
            await asyncio.sleep(pause_s if meal is None else max(pause_s, meal.rest_s))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.poll_s):
                    await self._hungry.wait()

    async def _listen(self, wakeups: Wakeups) -> None:
        async for channel, _ in wakeups.listen(DUE, ROOM):
            self._wake(singles=channel == DUE or self._singles.left_any)

    def _wake(self, *, singles: bool = True) -> None:
        if singles:
            self._woken.set()
        self._fed.set()
        self._hungry.set()

    async def _republish_stale(self) -> None:
        for queue in self._queues:
            depth = await asyncio.to_thread(self._publisher.depth, queue)
            stale_s = self._settings.republish_s * (_LOST_MESSAGE_FACTOR if depth else 1)
            params = {"queue": queue, "stale_s": stale_s, "since": self._windows.published_since(queue)}
            rows = await fetch_all(self._engine, UNDISPATCH_STALE, params)
            if rows:
                self._windows.forget([queue])
                log.warning("relay.republished", queue=queue, jobs=len(rows))
                self._wake()

    async def _tell_of_unserved(self) -> None:
        """Say in the log, once, of a queue that jobs wait in it and no worker serves it; at the second look, since
        workers may be starting."""
        live = await fetch_all(self._engine, SELECT_LIVE)
        served = {queue for process in live if process["role"] == "worker" for queue in process["queues"]}
        params = {"queues": [queue for queue in self._queues if queue not in served], "most": _MOST_COUNTED}
        backlog = await fetch_all(self._engine, SELECT_BACKLOG, params) if params["queues"] else []
        waiting = {row["queue"]: row["waiting"] + row["published"] for row in backlog}
        looks = {queue: self._unserved.get(queue, 0) + 1 for queue in waiting if waiting[queue]}
        for queue, seen in looks.items():
            if seen == _LOOKS_BEFORE_TELLING:
                log.warning("queue.unserved", queue=queue, jobs=waiting[queue], meaning="no worker consumes it")
        self._unserved = looks


_OUTSIDE_ERRORS = (SQLAlchemyError, BrokerUnavailable, OSError)


async def _until_signalled(work: Coroutine[Any, Any, None]) -> None:  # Any: the types of a coroutine's sends
    task = asyncio.create_task(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        log.info("relay.stopped")


def main() -> None:
    """Run a relay until SIGTERM or SIGINT."""
    configure_logging()
    with ending_in_one_line():
        settings = read_settings(RelaySettings)
        catalog = load_catalog(settings.catalog, settings.optional_llms)
        require_stores(settings)
    relay = Relay(settings, catalog, Publisher(app))
    keep_pauses_short()
    asyncio.run(_until_signalled(relay.run()))


if __name__ == "__main__":
    main()
