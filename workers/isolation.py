"""Runs suspects, jobs that were in two processes that died, one at a time in a spare process.

::

    claim finds a suspect --> waits here, tenants in turn --> spare process runs it alone
                                   |                              |        |
              too many wait: postponed                       finished   the process dies: only this job
                                                                        is to blame, and only it is affected

The spare process (:mod:`workers.isolated`) starts when it is first needed, keeps its model for the next suspect, and
ends after a while without one. It has a lease of its own. It reads ids of jobs from standard input and answers each
with a line when the job has ended; when its input ends, which is also when this process dies, it gives its job back.
"""

import asyncio
import os
import random
import sys
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from secrets import token_hex
from uuid import UUID

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from models.attempt import POSTPONE
from models.database import fetch_all
from models.process import DEREGISTER_NAMED
from workers.exchange import Suspect

IDLE_S = 60.0
_POSTPONED_S = (1.0, 5.0)
_ALIVE_FILE = "HEADRACE_ALIVE_FILE"

log = structlog.get_logger()


class Isolation:
    """The suspects that one worker process has taken on, and its spare process.

    At most ``capacity`` suspects wait here, and of one tenant half of that: they stay in their queue's window, which
    other jobs need too.
    """

    def __init__(self, engine: AsyncEngine, *, worker: str, capacity: int, stop_s: float) -> None:
        self._engine = engine
        self._worker = worker
        self._most = capacity
        self._most_of_tenant = max(1, capacity // 2)
        self._stop_s = stop_s
        self._tenants: dict[UUID, deque[UUID]] = {}
        self._running: UUID | None = None
        self._arrived = asyncio.Event()
        self._closing = False
        self._process: asyncio.subprocess.Process | None = None
        self._name = ""

    @property
    def waiting(self) -> list[UUID]:
        """The jobs that wait, whose messages are gone."""
        return [job_id for jobs in self._tenants.values() for job_id in jobs]

    async def take(self, suspect: Suspect) -> None:
        """Have a suspect run; one too many is put off."""
        if self._running == suspect.job_id or suspect.job_id in self.waiting:
            return
        mine = self._tenants.get(suspect.tenant_id, ())
        if self._closing or len(mine) >= self._most_of_tenant or len(self.waiting) >= self._most:
            await self._postpone([suspect.job_id], random.uniform(*_POSTPONED_S))
            return
        self._tenants.setdefault(suspect.tenant_id, deque()).append(suspect.job_id)
        self._arrived.set()

    async def keep(self) -> None:
        """Run what comes, for ever."""
        while True:
            self._running = self._next()
            if self._running is not None:
                await self._run(self._running)
                continue
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), IDLE_S)
            except TimeoutError:
                await self._end_process()

    def drain(self) -> None:
        """Take nothing new, and have the spare process give back what it runs."""
        self._closing = True
        if self._process is not None:
            _close_input(self._process)

    async def close(self) -> None:
        """Give back what waits, and end the spare process; call after :meth:`drain`, and when ``keep`` has ended."""
        left = self.waiting if self._running is None else [self._running, *self.waiting]
        self._tenants.clear()
        if left:
            await self._postpone(left, 0)
        await self._end_process()

    def _next(self) -> UUID | None:
        """The next job: of the tenant whose turn is longest ago."""
        if not self._tenants or self._closing:
            return None
        tenant_id = next(iter(self._tenants))
        jobs = self._tenants.pop(tenant_id)
        job_id = jobs.popleft()
        if jobs:
            self._tenants[tenant_id] = jobs
        return job_id

    async def _run(self, job_id: UUID) -> None:
        if self._process is not None and self._process.returncode is not None:
            await self._end_process()  # it died while it was idle
        try:
            process = self._process or await self._start_process()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(job_id.hex.encode() + b"\n")
            await process.stdin.drain()
            ended = await process.stdout.readline()
        except OSError as error:
            log.warning("isolation.failed", job_id=job_id.hex, error=str(error))
            ended = b""
        if not ended:
            await self._end_process(job_id)
            await self._postpone([job_id], random.uniform(*_POSTPONED_S))  # in case it was never claimed

    async def _start_process(self) -> asyncio.subprocess.Process:
        self._name = f"isolated-{token_hex(4)}-{self._worker}"
        environment = {name: value for name, value in os.environ.items() if name != _ALIVE_FILE}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "workers.isolated", self._name),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,  # a signal to this process's group is not for it: it gives its job back first
        )
        log.info("isolation.process_started", name=self._name)
        return self._process

    async def _end_process(self, job_id: UUID | None = None) -> None:
        """End the spare process and remove its lease, so that a job that it held is taken back at once."""
        process, self._process = self._process, None
        if process is None:
            return
        _close_input(process)
        try:
            await asyncio.wait_for(process.wait(), self._stop_s)
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if process.returncode:
            held = None if job_id is None else job_id.hex
            log.warning("isolation.process_died", name=self._name, job_id=held, exit_code=process.returncode)
            with suppress(SQLAlchemyError, OSError):  # else its lease runs out
                await fetch_all(self._engine, DEREGISTER_NAMED, {"name": self._name})

    async def _postpone(self, job_ids: Collection[UUID], delay_s: float) -> None:
        with suppress(SQLAlchemyError, OSError):  # else the relay publishes them again
            await fetch_all(self._engine, POSTPONE, {"job_ids": list(job_ids), "delay_s": delay_s})


def _close_input(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
