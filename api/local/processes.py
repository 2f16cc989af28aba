"""Processes by id: start one in a session of its own, see whether one is ours, stop one and wait."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from api.local.errors import LocalError

PROC = Path("/proc")
POLL_S = 0.02


@dataclass(frozen=True)
class Account:
    """The operating system's account that a server runs under."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True)
class StopStep:
    """Send a signal, then give the process so many seconds to end."""

    signal: signal.Signals
    timeout_s: float


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    output: int | IO[bytes],
    cwd: Path | None = None,
    account: Account | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process that leads its own session, so that Ctrl-C and a closed terminal pass it by.

    Raises LocalError when the program cannot be run or the account cannot be taken.
    """
    try:
        return subprocess.Popen(
            argv,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
    except OSError as error:
        raise LocalError(_cannot_run(argv[0], account, error)) from error


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    account: Account | None,
    text: str = "",
    program: str | None = None,
    timeout_s: float = 300.0,
) -> subprocess.CompletedProcess[str]:
    """Run a short program to its end, with ``text`` as its input; ``program`` is run in place of ``argv[0]``.

    Raises LocalError when it cannot be run, or does not end in time.
    """
    try:
        return subprocess.run(
            argv,
            executable=program,
            input=text,
            env=dict(env),
            cwd=cwd,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout_s,
            start_new_session=True,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
    except subprocess.TimeoutExpired as error:
        raise LocalError(f"{argv[0]} did not end within {timeout_s:g} s") from error
    except OSError as error:
        raise LocalError(_cannot_run(program or argv[0], account, error)) from error


def _cannot_run(program: str, account: Account | None, error: OSError) -> str:
    who = f" as the user {account.name}" if account else ""
    return f"cannot run {program}{who}: {error.strerror or error}"


def is_alive(pid: int) -> bool:
    """Whether a process is there and has not ended; one that waits for its parent to notice has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        state = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return not PROC.joinpath("self").exists()
    return state[0] not in "ZX"


def command_line(pid: int) -> str:
    """A process's arguments, joined with spaces; empty when it is gone or not to be seen."""
    if PROC.joinpath("self").exists():
        try:
            return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            return ""
    listing = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, check=False, text=True)
    return listing.stdout.strip()


def working_in(directory: Path, program: str) -> list[int]:
    """The processes that run ``program`` in ``directory``; none where there is no /proc to look at."""
    found = []
    for entry in PROC.glob("[0-9]*"):
        with suppress(OSError):
            runs_it = (entry / "comm").read_text().strip() == program
            if runs_it and (entry / "cwd").readlink() == directory:
                found.append(int(entry.name))
    return found


def wait_until_gone(pids: Sequence[int], timeout_s: float) -> bool:
    """Wait for processes that may not be our children; false when some are left after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while any(is_alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def stop_strangers(pids: Sequence[int], steps: Sequence[StopStep]) -> None:
    """Stop processes that are not our children, step by step, with ``SIGKILL`` as the last.

    Raises LocalError when they outlive even that.
    """
    for step in (*steps, StopStep(signal.SIGKILL, 10.0)):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, step.signal)
        if wait_until_gone(pids, step.timeout_s):
            return
    raise LocalError(f"cannot stop the process {', '.join(map(str, pids))} left by an earlier run")


def stop_child(process: subprocess.Popen[bytes], steps: Sequence[StopStep]) -> None:
    """Stop our child step by step, ``SIGKILL`` last, and then whatever is left of its group."""
    for step in (*steps, StopStep(signal.SIGKILL, 10.0)):
        if process.poll() is not None:
            break
        signal_group(process.pid, step.signal)
        with suppress(subprocess.TimeoutExpired):
            process.wait(step.timeout_s)
    signal_group(process.pid, signal.SIGKILL)


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal a process group; nothing happens when it is gone (or, on macOS, only zombies are left of it)."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def python(*arguments: str) -> tuple[str, ...]:
    """The command that runs this same Python with arguments."""
    return (sys.executable, *arguments)
