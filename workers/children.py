"""Child processes that answer questions which may hurt: endless work, a crash in a library, all the memory.

A child is ``python -m <module>`` and calls :func:`workers.child.serve`: one line in, one line out. Questions wait in a
rotation of tenants, so that however many one tenant asks, another's is next when a child is free. A child that dies,
takes too long or gives no answer is replaced; only the question that it had fails.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

import structlog

from models.rotation import Rotation
from workers.child import READY

START_S = 30.0
"""How long a child may take until it is ready; not part of any question's limit."""

PATIENCE = 8
"""A question's limit is processor time of its child. On a busy machine that takes longer by the clock: up to this
many times the limit."""

MAX_LINE = 1 << 20
_LAST_MOMENT_S = 1.0
"""How long a child that closed its output may take to end, so that its own exit status is learnt."""

_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
"""What a child needs to start; it gets no key."""

log = structlog.get_logger()


class Cause(Enum):
    """Why a child gave no answer."""

    TIME = "it took too long"
    """It was ended at the question's limit."""

    DEATH = "its process died"
    """A crash, or all the memory that it may have: the question's doing."""

    START = "its process does not start"
    """The machine's or the installation's doing: the question was not looked at."""


class ChildFailed(Exception):
    """A child gave no answer."""

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause.value)
        self.cause = cause


@dataclass(eq=False, slots=True)
class _Question:
    tenant: Hashable
    text: bytes
    timeout_s: float
    answer: asyncio.Future[bytes]


class Children:
    """At most ``number`` children of one module, for one event loop; started when they are first needed."""

    def __init__(self, module: str, *, number: int, max_line: int = MAX_LINE) -> None:
        self._module = module
        self._number = number
        self._max_line = max_line
        self._waiting: Rotation[_Question] = Rotation()
        self._idle: list[asyncio.subprocess.Process] = []
        self._busy: set[asyncio.Task[None]] = set()

    async def ask(self, tenant: Hashable, question: bytes, *, timeout_s: float) -> bytes:
        """The answer to a question without line ends; raises ChildFailed.

        ``timeout_s`` is processor time from the moment a child has the question. An asker that is cancelled leaves its
        child to finish, within the limit, for nobody.
        """
        if b"\n" in question:
            raise ValueError("question: expected one line, got a line end")
        asked = _Question(tenant, question, timeout_s, asyncio.get_running_loop().create_future())
        self._waiting.put(tenant, asked)
        if len(self._busy) < self._number:
            serving = asyncio.create_task(self._serve())
            self._busy.add(serving)
            serving.add_done_callback(self._busy.discard)
        try:
            return await asked.answer
        except asyncio.CancelledError:
            self._waiting.discard(tenant, asked)
            raise

    async def close(self) -> None:
        """End the children; questions that still wait fail."""
        busy = list(self._busy)
        for serving in busy:
            serving.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
        while self._idle:
            await _end(self._idle.pop())
        while self._waiting:
            _fail(self._waiting.take(), Cause.DEATH)

    async def _serve(self) -> None:
        """Answer with one child, replaced when it fails, until nothing waits."""
        child = None
        try:
            while self._waiting:
                try:
                    child = child or self._take_idle() or await self._start()
                except (OSError, ValueError, TimeoutError) as error:
                    log.error("child.not_started", module=self._module, error=str(error) or type(error).__name__)
                    if self._waiting:
                        _fail(self._waiting.take(), Cause.START)
                    continue
                # The question is chosen now that the child is ready: one that came meanwhile may be next.
                if self._waiting and not await self._answer(child, self._waiting.take()):
                    child = None
        except BaseException:
            if child is not None:
                await _end(child)
            raise
        else:
            if child is not None:
                self._idle.append(child)
        finally:
            # In the same step as the last look at what waits: whoever asks next starts another.
            self._busy.discard(asyncio.current_task())

    def _take_idle(self) -> asyncio.subprocess.Process | None:
        while self._idle:
            child = self._idle.pop()
            if child.returncode is None:
                return child
        return None

    async def _start(self) -> asyncio.subprocess.Process:
        """A child that is ready for a question."""
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", self._module),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            limit=self._max_line,
        )
        try:
            async with asyncio.timeout(START_S):
                if await _out(child).readline() == READY:
                    return child
        except BaseException:
            await _end(child)
            raise
        raise OSError(f"it ended with status {await _end(child)}")

    async def _answer(self, child: asyncio.subprocess.Process, question: _Question) -> bool:
        """Put a question to a child; False when the child is no more."""
        cause = Cause.DEATH
        try:
            async with asyncio.timeout(PATIENCE * question.timeout_s):
                assert child.stdin is not None
                child.stdin.write(b"%d %b\n" % (max(1, round(question.timeout_s * 1e6)), question.text))
                await child.stdin.drain()
                line = await _out(child).readline()
            if line.endswith(b"\n"):
                if not question.answer.done():
                    question.answer.set_result(line[:-1])
                return True
        except TimeoutError:
            cause = Cause.TIME
        except (OSError, ValueError):  # it ended while it was written to, or its answer is longer than max_line
            pass
        except BaseException:
            _fail(question, cause)
            raise
        if await _end(child, grace_s=_LAST_MOMENT_S if cause is Cause.DEATH else 0.0) == -signal.SIGPROF:
            cause = Cause.TIME
        _fail(question, cause)
        return False


def _out(child: asyncio.subprocess.Process) -> asyncio.StreamReader:
    assert child.stdout is not None
    return child.stdout


def _fail(question: _Question, cause: Cause) -> None:
    if not question.answer.done():
        question.answer.set_exception(ChildFailed(cause))


async def _end(child: asyncio.subprocess.Process, *, grace_s: float = 0.0) -> int:
    """End a child if it does not end by itself, also when the caller is cancelled meanwhile; its exit status."""
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                return await child.wait()
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                child.kill()
    return await child.wait()
