"""The engine room of a worker process: one event loop that keeps many jobs in flight.

Celery's threads bring messages (:meth:`Runner.run`) and wait; the loop claims, runs and reports. A loop carries
hundreds of calls that wait on sockets, and lets claims and reports that coincide share a statement.

When Postgres cannot be used, the process stops consuming and gives the messages of jobs that it has not claimed back
to the broker, for workers that can; what it runs it keeps, and reports when Postgres is back.
"""

import asyncio
import itertools
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.exc import SQLAlchemyError

from models.attempt import SELECT_HELD, SELECT_STILL_HELD
from models.catalog import Catalog
from models.database import WAITING_HELPS, DatabaseFailure, classify, create_engine, describe, fetch_all
from models.pauses import keep_pauses_short
from models.shared import Shared
from models.texts import TextSender
from models.wakeups import CANCEL, Wakeups
from workers.breaker import Breakers
from workers.engine.host import EngineHost, HostOptions
from workers.engine.memory import Thresholds
from workers.engine.reports import MemoryChange
from workers.engine.watchdog import end_process
from workers.exchange import Exchange, Suspect
from workers.execution import Attempt, Claim, StopReason
from workers.gate import Gate
from workers.isolation import Isolation
from workers.lease import Lease
from workers.notices import Notices
from workers.permits import Permits
from workers.places import Places
from workers.providers.registry import Providers
from workers.settings import WorkerSettings
from workers.stalls import end_if_stalled

_REPORT_TIMEOUT_S = 10.0
_START_TIMEOUT_S = 5.0
"""How long the start waits for the first beat, so that a healthy process starts with a current lease."""

_CUT_OFF = frozenset({DatabaseFailure.AWAY, DatabaseFailure.READ_ONLY, DatabaseFailure.FULL})
"""Failures of a claim that no other claim of this process would escape."""

_LOOKS_PER_SEARCH = 6
"""Reconciliations for each one that also searches for jobs that are held and not run."""

_CLAIM_AGAIN = WAITING_HELPS | {DatabaseFailure.TIMEOUT}
_CLAIM_RETRY_S = 0.5
_SWITCH_INTERVAL_S = 0.001
"""How long Celery's threads may keep the loop waiting for the interpreter; Python's own 5 ms add up in every call."""

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class _Message:
    """The jobs of one message: ``waiting`` have no place yet, ``unclaimed`` no answer to their claim.

    ``returned`` is done when the message goes back to the broker with what is unclaimed.
    """

    waiting: deque[UUID]
    unclaimed: set[UUID]
    rows: bool
    returned: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Runner:
    """Runs the jobs of one worker process, at most ``capacity`` at a time, on a thread of its own.

    An ``isolated`` one runs suspects, one at a time; any other leaves those of local models to a spare process.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        catalog: Catalog,
        *,
        name: str,
        queues: Collection[str],
        capacity: int,
        isolated: bool = False,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._capacity = capacity
        self._queues = queues
        self._name = name
        self._local_queues = [] if isolated else sorted(set(queues) & set(catalog.local_queues))
        self._engine = create_engine(settings.database_url, name=name, pool_size=4)
        self._lease = Lease(
            self._engine,
            role="isolated" if isolated else "worker",
            name=name,
            queues=queues,
            capacity=capacity,
            lease_s=settings.lease_s,
            on_change=self._tell_consumer,
        )
        self._places = Places(capacity)
        self._waiting: Counter[UUID] = Counter()
        self._running: dict[UUID, Attempt] = {}
        self._suspects: set[UUID] = set()
        self._looks = itertools.count()
        self._may_hold_more = False
        self._messages: set[_Message] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_consuming: Callable[[bool], None] | None = None
        self._drain_task: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._live, name="runner", daemon=True)

    def start(self) -> None:
        """Start the loop and the heartbeat."""
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        self._thread.start()
        self._ready.wait(_START_TIMEOUT_S)
        keep_pauses_short()

    def run(self, job_ids: Collection[UUID], *, rows: bool) -> bool:
        """Run the jobs of one message and wait for their ends; called from Celery's threads.

        Jobs that are not to be had (finished, claimed by another, not due) are passed over. ``rows`` of batches let
        single jobs go first (:mod:`workers.places`). False: some were not claimed, and the broker shall deliver the
        message again.
        """
        return asyncio.run_coroutine_threadsafe(self._run_message(job_ids, rows), self._loop).result()

    @property
    def may_consume(self) -> bool:
        """Whether this process can claim what it takes from the broker."""
        return self._lease.is_current

    def listen(self, on_consuming: Callable[[bool], None]) -> None:
        """Have changes of :attr:`may_consume` told, from the loop's thread; :meth:`consuming_stopped` answers."""
        self._on_consuming = on_consuming

    def consuming_stopped(self) -> None:
        """Note that no message comes any more: those with unclaimed jobs can go back; from any thread."""
        self._loop.call_soon_threadsafe(self._return_if_doubted)

    def drain(self) -> None:
        """Take nothing new, and give running jobs back to the queue after the grace period."""
        self._loop.call_soon_threadsafe(self._start_draining)

    def stop(self) -> None:
        """Give back the lease and end the thread; call after :meth:`drain`."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._engine.dispose)
            self._wakeups = Wakeups(self._settings.redis_url)
            stack.push_async_callback(self._wakeups.close)
            self._texts = TextSender(self._settings.redis_url)
            stack.push_async_callback(self._texts.close)
            self._notices = Notices(self._engine)
            self._host = EngineHost(
                self._catalog,
                _host_options(self._settings, self._capacity),
                on_change=self._lease.beat_soon,
                on_memory=self._note_memory,
            )
            stack.push_async_callback(self._host.close)
            self._host.preload(self._queues)
            self._providers = Providers(self._catalog, self._host)
            self._providers.warn_of_missing_keys(self._queues)
            stack.push_async_callback(self._providers.close)
            shared = Shared(self._settings.redis_url)
            stack.push_async_callback(shared.close)
            self._breakers = Breakers(shared, self._catalog.breaker, self._catalog.llms)
            self._permits = Permits(shared, self._catalog)
            self._gate = Gate(self._breakers, self._permits)
            self._exchange = Exchange(
                self._engine, self._wakeups, self._catalog, self._lease, local_queues=self._local_queues
            )
            stack.callback(self._exchange.close)
            self._isolation = Isolation(
                self._engine,
                worker=self._name,
                capacity=self._capacity,
                stop_s=self._settings.drain_s + _REPORT_TIMEOUT_S,
            )
            stack.push_async_callback(self._lease.give_back)
            duties = [asyncio.create_task(duty) for duty in self._duties()]
            await self._lease.tried()
            self._ready.set()
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait([stopping, *duties], return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                _end_for_lack_of(duties)
            await self._start_draining()
            for duty in duties:
                duty.cancel()
            await asyncio.wait(duties)
            await self._isolation.close()

    def _duties(self) -> list[Coroutine[Any, Any, None]]:  # Any: the types of a coroutine's sends
        heartbeat = self._lease.keep(
            in_flight=lambda: len(self._running),
            waiting=lambda: [*self._waiting, *self._isolation.waiting],
            models=lambda: [model.as_wire() for model in self._host.loaded],
            after_beat=self._reconcile,
            on_lost=self._abandon_all,
        )
        return [
            heartbeat,
            end_if_stalled(self._settings.stalled_s, self._settings.alive_file),
            self._hear_cancellations(),
            self._breakers.keep(),
            self._permits.keep(),
            self._host.keep(),
            self._isolation.keep(),
            self._notices.keep(),
        ]

    def _note_memory(self, change: MemoryChange) -> None:
        self._notices.record("worker.memory", {"worker": self._name, **change.as_wire()})

    @property
    def _draining(self) -> bool:
        return self._drain_task is not None

    async def _run_message(self, job_ids: Collection[UUID], rows: bool) -> bool:
        message = _Message(deque(job_ids), set(job_ids), rows)
        self._messages.add(message)
        self._waiting.update(message.unclaimed)
        work = self._start(self._work(message))
        if self._draining:
            message.returned.set_result(None)
        elif not self.may_consume:
            self._tell_consumer()  # it came although consuming was stopped
        try:
            await asyncio.wait([work, message.returned], return_when=asyncio.FIRST_COMPLETED)
            if message.returned.done():
                work.cancel()  # what has a place goes on in tasks of its own
            return not message.unclaimed
        finally:
            self._messages.discard(message)
            for job_id in set(message.unclaimed):
                self._note_claimed(message, job_id)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:  # Any: the types of a coroutine's sends
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _work(self, message: _Message) -> None:
        jobs: list[asyncio.Task[None]] = []
        single = not message.rows
        while message.waiting:
            await self._lease.until_current()
            places = await self._places.take(len(message.waiting), single=single)
            if not self._lease.is_current:
                for _ in range(places):
                    self._places.give_back(single=single)
                continue
            jobs += [self._start(self._run_one(message, message.waiting.popleft())) for _ in range(places)]
        if jobs:
            await asyncio.wait(jobs)

    async def _run_one(self, message: _Message, job_id: UUID) -> None:
        try:
            claim = await self._claim(message, job_id)
            if isinstance(claim, Suspect):
                await self._isolation.take(claim)
            elif claim is not None:
                await self._attempt(claim)
        finally:
            self._places.give_back(single=not message.rows)

    async def _claim(self, message: _Message, job_id: UUID) -> Claim | Suspect | None:
        """Claim a job, and again while Postgres cannot be asked, until its message has gone back to the broker."""
        while not message.returned.done():
            if not self._lease.is_current:
                await asyncio.sleep(_CLAIM_RETRY_S)
                continue
            try:
                claim = await self._exchange.claim(job_id, is_row=message.rows)
            except (SQLAlchemyError, OSError) as error:
                failure = classify(error)
                self._may_hold_more = True
                log.warning("claim.failed", job_id=job_id.hex, failure=failure, error=describe(error))
                if failure not in _CLAIM_AGAIN:
                    # Nothing is lost: the relay publishes the job again, or the reconciliation gives it back.
                    self._note_claimed(message, job_id)
                    return None
                if failure in _CUT_OFF:
                    self._lease.doubt()
                await asyncio.sleep(_CLAIM_RETRY_S)
            else:
                self._note_claimed(message, job_id)
                return claim
        return None

    def _note_claimed(self, message: _Message, job_id: UUID) -> None:
        if job_id in message.unclaimed:
            message.unclaimed.discard(job_id)
            self._waiting[job_id] -= 1
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    def _tell_consumer(self) -> None:
        if self._on_consuming is not None:
            self._on_consuming(self.may_consume)

    def _return_if_doubted(self) -> None:
        if not self._lease.is_current:
            self._return_messages()

    def _return_messages(self) -> None:
        for message in self._messages:
            if message.unclaimed and not message.returned.done():
                message.returned.set_result(None)

    async def _attempt(self, claim: Claim) -> None:
        attempt = Attempt(claim, self._catalog, self._providers, self._gate, self._text_writer(claim))
        self._running[claim.attempt_id] = attempt
        try:
            if self._draining:
                attempt.stop(StopReason.RELEASED)
            report = await attempt.run()
            await self._exchange.report(report)
        except Exception as error:  # noqa: BLE001 - of this attempt alone
            # The lease still holds the job: the reconciliation will find it unclaimed here and release it.
            self._may_hold_more = True
            log.error("attempt.not_reported", job_id=claim.job_id.hex, error=describe(error))
        finally:
            del self._running[claim.attempt_id]

    def _text_writer(self, claim: Claim) -> Callable[[str], None] | None:
        """What takes an attempt's text as it comes, if somebody reads along."""
        channel = claim.request.get("stream")
        if channel is None:
            return None
        return self._texts.writer(channel, claim.job_id.hex, claim.attempt_id.hex, claim.llm)

    async def _reconcile(self) -> None:
        """Compare what Postgres says that this process runs with what it does run.

        Stops attempts that were cancelled or taken away. Gives back jobs that are held and not run, which
        happens when the answer to a claim was lost; only if seen twice, for a claim may be on its way. It searches for
        them after such a failure, and now and then.
        """
        before = dict(self._running)
        searches = next(self._looks) % _LOOKS_PER_SEARCH == 0 or self._may_hold_more or bool(self._suspects)
        self._may_hold_more = False
        params: dict[str, object] = {"worker_id": self._lease.id}
        if not searches:
            params["job_ids"] = [attempt.claim.job_id for attempt in before.values()]
        rows = await fetch_all(self._engine, SELECT_HELD if searches else SELECT_STILL_HELD, params)
        held = {row["attempt_id"]: row["cancel_requested"] for row in rows}
        for attempt_id, attempt in before.items():
            if attempt_id not in held:
                attempt.stop(StopReason.LOST)
            elif held[attempt_id]:
                attempt.stop(StopReason.CANCELLED)
        orphans = held.keys() - before.keys() - self._running.keys() - self._exchange.unreported.keys()
        confirmed = orphans & self._suspects
        self._suspects = orphans - confirmed
        if confirmed:
            log.warning("jobs.released", jobs=len(confirmed))
            await self._exchange.release(confirmed)

    async def _hear_cancellations(self) -> None:
        async for _, job_ids in self._wakeups.listen(CANCEL):
            cancelled = set(job_ids)
            for attempt in self._running.values():
                if attempt.claim.job_id.hex in cancelled:
                    attempt.stop(StopReason.CANCELLED)

    def _abandon_all(self) -> None:
        for attempt in self._running.values():
            attempt.stop(StopReason.LOST)

    def _start_draining(self) -> "asyncio.Task[None]":
        if self._drain_task is None:
            self._return_messages()
            self._isolation.drain()
            self._drain_task = asyncio.create_task(self._drain())
        return self._drain_task

    async def _drain(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._settings.drain_s)
        for attempt in self._running.values():
            attempt.stop(StopReason.RELEASED)
        if self._tasks:
            _, stuck = await asyncio.wait(self._tasks, timeout=_REPORT_TIMEOUT_S)
            # Postgres is away: their reports are lost with this process, and their leases run out.
            for task in stuck:
                task.cancel()


def _end_for_lack_of(duties: Collection[asyncio.Task[None]]) -> None:
    """End the process when a duty has ended: without its heartbeat, say, it would live on and hold nothing."""
    ended = [task for task in duties if task.done()]
    errors = [None if task.cancelled() else task.exception() for task in ended]
    log.critical("worker.duty_ended", duties=[repr(task.get_coro()) for task in ended], errors=list(map(repr, errors)))
    end_process()


def _host_options(settings: WorkerSettings, capacity: int) -> HostOptions:
    return HostOptions(
        concurrency=capacity,
        budget_bytes=None if settings.model_memory_mb is None else settings.model_memory_mb << 20,
        thresholds=Thresholds(
            settings.memory_hold_percent / 100,
            settings.memory_unload_percent / 100,
            settings.memory_refuse_percent / 100,
        ),
    )
