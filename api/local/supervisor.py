"""Runs processes: starts them in order, starts again what dies, shows what they write, stops them in reverse
order.

One thread waits in ``select`` for output, for signals and for the next restart, so an idle supervisor uses no
CPU.
"""

import math
import os
import selectors
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any, Self, TypeVar

from api.local import processes
from api.local.errors import Interrupted, LocalError, StartError
from api.local.guardian import Guardian
from api.local.logs import RotatingLog
from api.local.processes import Account, StopStep

T = TypeVar("T")

FIRST_BACKOFF_S = 1.0
LAST_BACKOFF_S = 30.0
HEALTHY_S = 10.0
START_ATTEMPTS = 3
READY_POLL_S = 0.05
HURRY_S = 2.0
KILL_WAIT_S = 10.0
SAME_REQUEST_S = 0.2
LONGEST_LINE = 65_536
LAST_READS = 64
OWN_NAME = "headrace"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """How to run one process.

    ``argv`` may be a function: it is called before every start, and can clear what the last run left behind.
    ``env`` is the whole environment. ``ready`` is asked until it says yes before the next process is started.
    ``stop`` ends it step by step; ``SIGKILL`` follows the last one. Without ``echo``, what it writes goes to
    its log file only.
    """

    name: str
    argv: Sequence[str] | Callable[[], Sequence[str]]
    env: Mapping[str, str]
    cwd: Path | None = None
    account: Account | None = None
    ready: Callable[[], bool] | None = None
    start_timeout_s: float = 60.0
    stop: Sequence[StopStep] = (StopStep(signal.SIGTERM, 10.0),)
    restart: bool = True
    echo: bool = True


class _Output:
    """The reading end of a process's output: bytes in, whole lines out."""

    def __init__(self, pipe: IO[bytes], receive: Callable[[bytes], None]) -> None:
        os.set_blocking(pipe.fileno(), False)
        self.pipe = pipe
        self.ended = False
        self._receive = receive
        self._rest = b""

    def read(self) -> bool:
        """Read what is there; false when there is nothing now, or (see ``ended``) never will be."""
        if self.ended:
            return False
        try:
            data = os.read(self.pipe.fileno(), 65_536)
        except BlockingIOError:
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data or len(self._rest) > LONGEST_LINE:
            lines, self._rest = [*lines, self._rest] if self._rest else lines, b""
        for line in lines:
            self._receive(line)
        self.ended = not data
        return bool(data)


@dataclass
class _Child:
    """A process under supervision, and what is known about its runs."""

    spec: ProcessSpec
    log: RotatingLog
    process: subprocess.Popen[bytes] | None = None
    output: _Output | None = None
    established: bool = False
    started_at: float = 0.0
    restart_at: float | None = None
    backoff_s: float = FIRST_BACKOFF_S
    outcome: str = "not started"
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=12))


class Supervisor:
    """Use as a context manager, in the main thread: leaving it stops every process.

    ``log_dir`` gets one bounded file per process; ``show`` is told every line with its process's name. The
    methods that wait raise Interrupted when SIGINT, SIGTERM or SIGHUP asked this process to stop;
    another such signal while the processes are being stopped shortens their time.
    """

    def __init__(self, log_dir: Path, show: Callable[[str, str], None] | None = None) -> None:
        self._log_dir = log_dir
        self._show = show
        self._children: list[_Child] = []
        self._guardian = Guardian()
        self._selector = selectors.DefaultSelector()
        self._inbox, self._bell = socket.socketpair()
        self._stop_requests = 0
        self._last_request_at = -math.inf
        self._calm_requests: int | None = None
        self._hurried = False
        self._old_handlers: dict[int, Any] = {}  # Any: `signal.signal` takes back whatever it returned
        self._old_wakeup = -1

    def __enter__(self) -> Self:
        self._inbox.setblocking(False)
        self._bell.setblocking(False)
        self._selector.register(self._inbox, selectors.EVENT_READ)
        self._old_wakeup = signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        self._old_handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for number in STOP_SIGNALS:
            # Ignored hang-ups are how `nohup` asks to outlive the terminal.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._old_handlers[number] = signal.signal(number, self._note_stop)
        self._log = RotatingLog(self._log_dir / f"{OWN_NAME}.log")
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.stop()
        finally:
            self._guardian.close()
            signal.set_wakeup_fd(self._old_wakeup)
            for number, handler in self._old_handlers.items():
                signal.signal(number, handler)
            for key in list(self._selector.get_map().values()):
                if isinstance(key.data, _Output):
                    key.data.pipe.close()
            self._selector.close()
            self._inbox.close()
            self._bell.close()
            self._log.close()

    def start(self, spec: ProcessSpec) -> None:
        """Start a process and wait until it is ready, if it says when.

        Raises StartError when it ends or stays silent instead, after a few attempts where it may
        restart.
        """
        child = self._add(spec)
        attempts = START_ATTEMPTS if spec.restart and spec.ready else 1
        for attempt in range(1, attempts + 1):
            self._launch(child)
            if self._became_ready(child):
                child.established = True
                return
            self._halt(child)
            if attempt < attempts:
                self.note(f"{spec.name} did not start ({child.outcome}); trying again")
                self._wait(FIRST_BACKOFF_S)
        raise StartError(f"{spec.name} did not start ({child.outcome})", tuple(child.recent))

    def complete(self, spec: ProcessSpec) -> None:
        """Run a process to its end. Raises StartError when it fails or exceeds its start time-out."""
        child = self._add(spec)
        self._launch(child)
        deadline = child.started_at + spec.start_timeout_s
        while child.process is not None and time.monotonic() < deadline:
            self._pump(deadline - time.monotonic())
            self._raise_if_interrupted()
        if child.process is not None:
            self._halt(child)
        self._children.remove(child)
        child.log.close()
        if child.outcome != "exit code 0":
            raise StartError(f"{spec.name} failed ({child.outcome})", tuple(child.recent))

    def run(self) -> None:
        """Supervise until a signal asks to stop."""
        while not self._stop_requests:
            self._pump(None)

    def run_during(self, work: Callable[[], T]) -> T:
        """Supervise while ``work`` runs in a thread; return what it returns, raise what it raises."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="work")
        future = pool.submit(work)
        future.add_done_callback(lambda done: self._ring())
        pool.shutdown(wait=False)
        while not future.done():
            self._pump(None)
            self._raise_if_interrupted()
        return future.result()

    def stop(self) -> None:
        """Stop everything, the latest started first; harmless when nothing runs."""
        self._calm_requests = self._stop_requests
        for child in reversed(self._children):
            self._halt(child)
        for child in self._children:
            child.log.close()
        self._children.clear()

    def pid_of(self, name: str) -> int | None:
        """The process id of a process that runs now."""
        pids = [child.process.pid for child in self._children if child.spec.name == name and child.process]
        return pids[0] if pids else None

    def note(self, text: str) -> None:
        """Say something in the supervisor's own name."""
        self._log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}\n".encode())
        if self._show:
            self._show(OWN_NAME, text)

    def _add(self, spec: ProcessSpec) -> _Child:
        child = _Child(spec, RotatingLog(self._log_dir / f"{spec.name}.log"))
        self._children.append(child)
        return child

    def _launch(self, child: _Child) -> None:
        spec = child.spec
        child.restart_at = None
        argv = spec.argv() if callable(spec.argv) else spec.argv
        process = processes.spawn(argv, env=spec.env, output=subprocess.PIPE, cwd=spec.cwd, account=spec.account)
        assert process.stdout is not None
        self._guardian.watch(process.pid, spec.stop[0].signal)
        child.process, child.started_at, child.outcome = process, time.monotonic(), "no answer in time"
        child.output = _Output(process.stdout, lambda line: self._receive(child, line))
        self._selector.register(process.stdout, selectors.EVENT_READ, child.output)

    def _became_ready(self, child: _Child) -> bool:
        if child.spec.ready is None:
            return True
        deadline = child.started_at + child.spec.start_timeout_s
        while child.process is not None and time.monotonic() < deadline:
            if child.spec.ready():
                return True
            self._wait(READY_POLL_S)
        return False

    def _receive(self, child: _Child, line: bytes) -> None:
        child.log.write(line + b"\n")
        text = line.decode(errors="replace")
        child.recent.append(text)
        if self._show and child.spec.echo and text.strip():
            self._show(child.spec.name, text)

    def _pump(self, timeout_s: float | None) -> None:
        """Wait for output, a signal, an ended process, the next restart or the time-out, and deal with it."""
        due = [child.restart_at - time.monotonic() for child in self._children if child.restart_at is not None]
        waits = [*due, timeout_s] if timeout_s is not None else due
        for key, _ in self._selector.select(max(0.0, min(waits)) if waits else None):
            if isinstance(key.data, _Output):
                self._read(key.data)
            else:
                self._inbox.recv(4_096)
        for child in self._children:
            if child.process is not None and child.process.poll() is not None:
                self._bury(child, child.process)
            elif child.restart_at is not None and time.monotonic() >= child.restart_at:
                self._relaunch(child)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._pump(left)
            self._raise_if_interrupted()

    def _read(self, output: _Output) -> bool:
        more = output.read()
        if output.ended and not output.pipe.closed:
            self._selector.unregister(output.pipe)
            output.pipe.close()
        return more

    def _bury(self, child: _Child, process: subprocess.Popen[bytes]) -> None:
        """Take note of a process's end, and end what is left of its group."""
        child.process = None
        child.outcome = _describe(process.returncode)
        processes.signal_group(process.pid, signal.SIGKILL)
        self._guardian.forget(process.pid)
        # Its last words are in the pipe, which processes that it left behind may hold open and go on writing
        # to.
        for _ in range(LAST_READS):
            if child.output is None or not self._read(child.output):
                break
        if child.established and self._calm_requests is None:
            self._plan_restart(child)

    def _plan_restart(self, child: _Child) -> None:
        name, outcome = child.spec.name, child.outcome
        if not child.spec.restart:
            self.note(f"{name} ended ({outcome})")
            return
        if time.monotonic() - child.started_at >= HEALTHY_S:
            child.backoff_s = FIRST_BACKOFF_S
        self.note(f"{name} ended ({outcome}); starting it again in {child.backoff_s:g} s")
        child.restart_at = time.monotonic() + child.backoff_s
        child.backoff_s = min(child.backoff_s * 2, LAST_BACKOFF_S)

    def _relaunch(self, child: _Child) -> None:
        try:
            self._launch(child)
        except LocalError as error:
            child.outcome, child.started_at = str(error), time.monotonic()
            self._plan_restart(child)

    def _halt(self, child: _Child) -> None:
        """Stop a process step by step, and wait for its end."""
        child.restart_at = None
        for step in (*child.spec.stop, StopStep(signal.SIGKILL, KILL_WAIT_S)):
            if child.process is None:
                return
            processes.signal_group(child.process.pid, step.signal)
            sent_at = time.monotonic()
            while child.process is not None:
                self._hurry_if_asked()
                patience_s = min(step.timeout_s, HURRY_S) if self._hurried else step.timeout_s
                if (left := sent_at + patience_s - time.monotonic()) <= 0:
                    break
                self._pump(left)
        if child.process is not None:
            self.note(f"{child.spec.name} (process {child.process.pid}) does not end")

    def _hurry_if_asked(self) -> None:
        if self._hurried or self._calm_requests is None or self._stop_requests <= self._calm_requests:
            return
        self._hurried = True
        self.note("stopping at once")
        for child in self._children:
            if child.process is not None:
                processes.signal_group(child.process.pid, child.spec.stop[0].signal)

    def _ring(self) -> None:
        """Wake the thread that waits in `select`; from any thread, even when nobody waits any more."""
        with suppress(OSError):
            self._bell.send(b"!")

    def _note_stop(self, number: int, frame: FrameType | None) -> None:
        # Some senders signal a process and its group, which is one request.
        if time.monotonic() - self._last_request_at > SAME_REQUEST_S:
            self._stop_requests += 1
        self._last_request_at = time.monotonic()

    def _raise_if_interrupted(self) -> None:
        if self._stop_requests:
            raise Interrupted


def _describe(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
