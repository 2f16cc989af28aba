"""Watches the steps of an engine, so that none hangs for ever."""

import os
import threading
from collections.abc import Callable
from time import monotonic

import structlog

log = structlog.get_logger()
_GIVE_UP_FACTOR = 2.0
_LONGEST_NAP_S = 1.0


def end_process() -> None:
    """End this process at once: its lease expires, and its jobs run elsewhere."""
    os._exit(os.EX_SOFTWARE)


class Watchdog:
    """Calls ``interrupt`` when a step takes longer than ``limit_s``, and ``give_up`` when that did not end it.

    A native call cannot be ended from outside; when it does not heed the interruption, only the end of the process
    frees its jobs.
    """

    def __init__(
        self, limit_s: float, interrupt: Callable[[], None], give_up: Callable[[], None] = end_process
    ) -> None:
        self.interruptions = 0
        self._limit_s = limit_s
        self._interrupt = interrupt
        self._give_up = give_up
        self._began_at: float | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="engine-watchdog", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """A step begins."""
        self._began_at = monotonic()

    def end(self) -> None:
        """The step has ended."""
        self._began_at = None

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        interrupted: float | None = None
        while not self._closed.wait(min(_LONGEST_NAP_S, self._limit_s / 4)):
            began_at = self._began_at
            if began_at is None:
                continue
            age_s = monotonic() - began_at
            if age_s > self._limit_s and interrupted != began_at:
                interrupted = began_at
                self.interruptions += 1
                log.error("engine.step_interrupted", seconds=round(age_s, 1))
                self._interrupt()
            if age_s > self._limit_s * _GIVE_UP_FACTOR:
                log.critical("engine.step_hangs", seconds=round(age_s, 1))
                self._give_up()
                return
