"""What the two embedded servers have in common: a directory, a port, a password, a start and an end."""

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from api.local import housing, ports, processes
from api.local.errors import LocalError, StartError
from api.local.guardian import Guardian
from api.local.lock import DirectoryLock
from api.local.logs import RotatingLog, tail
from api.local.processes import Account, StopStep
from api.local.supervisor import ProcessSpec

HOST = "127.0.0.1"
START_ATTEMPTS = 3
POLL_S = 0.02


class EmbeddedServer(ABC):
    """A server from a Python package's binaries that keeps its data under a data directory.

    Used in one of two ways. :meth:`start` and :meth:`stop` run it from this process, for tests and short
    commands. :meth:`process_spec` describes it to a supervisor, which then starts it again when it dies, on
    the same port. Either way one object owns the directory at a time, a server that an earlier owner left
    running there is stopped first, and the server ends when this process is killed.
    """

    name: ClassVar[str]
    program: ClassVar[str]
    usual_port: ClassVar[int]
    stop_steps: ClassVar[Sequence[StopStep]]

    def __init__(self, data_dir: Path, state_root: Path = housing.STATE_ROOT, *, first_port: int | None = None) -> None:
        """``first_port`` is tried before any other in place of the usual one; 0 is a port that the system picks."""
        self.data_dir = data_dir
        self._first_port = self.usual_port if first_port is None else first_port
        self._state_root = state_root
        self._account: Account | None = None
        self._directory: Path | None = None
        self._lock: DirectoryLock | None = None
        self._guardian = Guardian()
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None
        self._port_is_promised = False

    # What each server says about itself.

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect, the password included; known once the server was prepared."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether the server answers, as the server of this directory, and has loaded its data."""

    @abstractmethod
    def _recorded_pid(self) -> int | None:
        """The process id in the pid file, which may be stale."""

    @abstractmethod
    def _initialise(self) -> None:
        """Create the server's directory, or repair what a crash left of it."""

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """The command line that runs the server in the foreground on ``self.port``."""

    # What every server does.

    @property
    def directory(self) -> Path:
        """The server's own directory, owned by the account that it runs under."""
        if self._directory is None:
            raise LocalError(f"{self.name} was never started")
        return self._directory

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        if self._port is None:
            raise LocalError(f"{self.name} was never started")
        return self._port

    @property
    def pid(self) -> int | None:
        """The process id, while the server runs under :meth:`start`."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def is_running(self) -> bool:
        """Whether the process that :meth:`start` began is still there."""
        return self.pid is not None

    @property
    def log_file(self) -> Path:
        """What the server writes."""
        return self.data_dir / "logs" / f"{self.name}.log"

    def prepare(self) -> Sequence[str]:
        """Make the directory fit for a start, choose the port, and return the command line.

        Raises LocalError when the directory is in use or unusable, or the promised port was taken.
        """
        self.data_dir = housing.make_data_directory(self.data_dir)
        if self._lock is None:
            self._lock = DirectoryLock(self.data_dir / f"{self.name}.lock")
        self._lock.acquire()
        try:
            home = housing.home_of(self.data_dir, self.name, self._state_root)
            self._directory = home / self.name
            self._account = housing.service_account(self._directory)
            self._check_owner()
            self._stop_leftovers()
            self._initialise()
            self._choose_port(home / f"{self.name}.port")
            return self._command()
        except OSError as error:
            raise LocalError(f"cannot make {self.name} ready to start: {error}") from error

    def start(self, timeout_s: float = 60.0) -> str:
        """Start the server unless it runs, wait until it answers, and return its URL.

        Raises StartError with the last lines of its log when it does not come up.
        """
        for attempt in range(1, START_ATTEMPTS + 1):
            if self.is_running() and self.is_ready():
                break
            # One that was just killed may still look alive, and one that hangs is no use.
            self._halt()
            argv = self.prepare()
            with RotatingLog(self.log_file) as log:
                self._process = processes.spawn(
                    argv, env=self.environment(), output=log.file, cwd=self.directory, account=self._account
                )
            self._guardian.watch(self._process.pid, self.stop_steps[0].signal)
            try:
                self._wait_until_ready(timeout_s)
            except StartError:
                # Another process can take the port between our look at it and the server's own.
                self._halt()
                if attempt == START_ATTEMPTS:
                    self.close()
                    raise
        return self.url

    def stop(self) -> None:
        """Stop the server in good order and let go of its directory; harmless when it does not run."""
        self._halt()
        self.close()

    def kill(self) -> None:
        """End the server with ``SIGKILL``, as a crash would; its directory stays ours."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Let go of the directory, once the server (run by a supervisor, perhaps) has ended."""
        self._guardian.close()
        if self._lock is not None:
            self._lock.release()

    def process_spec(self) -> ProcessSpec:
        """The server as a process for a supervisor; call :meth:`close` when the supervisor has stopped it."""
        self.prepare()
        return ProcessSpec(
            name=self.name,
            argv=self.prepare,
            env=self.environment(),
            cwd=self.directory,
            account=self._account,
            ready=self._became_ready,
            stop=self.stop_steps,
            echo=False,
        )

    def environment(self) -> dict[str, str]:
        """A bare environment: the caller's locale and ``PG*`` variables would change what the server does."""
        return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}

    def _became_ready(self) -> bool:
        # Clients know the port from here on: the server comes back there or not at all.
        ready = self.is_ready()
        self._port_is_promised = self._port_is_promised or ready
        return ready

    def _check_owner(self) -> None:
        if self._directory is None or not self._directory.is_dir() or os.geteuid() == 0:
            return
        if self._directory.stat().st_uid != os.geteuid():
            raise LocalError(f"{self._directory} belongs to another user; run as that user (or as root) as before")

    def _stop_leftovers(self) -> None:
        """Stop the server that an earlier owner of this directory left running, and its child processes."""
        if self._directory is None or not self._directory.is_dir():
            return
        pid = self._recorded_pid()
        if pid is not None and processes.is_alive(pid) and self._is_ours(pid):
            processes.stop_strangers([pid], self.stop_steps)
        orphans = processes.working_in(self._directory.resolve(), self.program)
        if orphans:
            processes.stop_strangers(orphans, [StopStep(signal.SIGQUIT, 2.0)])

    def _is_ours(self, pid: int) -> bool:
        line = processes.command_line(pid)
        return self.program in line and str(self.directory) in line

    def _choose_port(self, memory: Path) -> None:
        if self._port_is_promised and self._port is not None:
            if not ports.port_is_free(HOST, self._port):
                raise LocalError(f"port {self._port}, which {self.name} had, is now used by another program")
            return
        remembered = memory.read_text().strip() if memory.is_file() else ""
        wanted = [int(remembered) if remembered.isdigit() else 0, self._first_port]
        self._port = ports.choose_port(HOST, filter(None, wanted))
        memory.write_text(f"{self._port}\n")

    def _wait_until_ready(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._became_ready():
            if not self.is_running():
                raise StartError(f"{self.name} did not start", tail(self.log_file))
            if time.monotonic() > deadline:
                raise StartError(f"{self.name} did not answer within {timeout_s:g} s", tail(self.log_file))
            time.sleep(POLL_S)

    def _halt(self) -> None:
        if self._process is not None:
            processes.stop_child(self._process, self.stop_steps)
            self._guardian.forget(self._process.pid)
            self._process = None
