"""The last resort against orphans: a process of its own that stops the others when their supervisor is
killed.

A supervisor killed with ``kill -9`` cannot stop anything. The guardian reads a pipe that only the supervisor
can write to; when the pipe closes, the supervisor is gone, and the guardian stops every process group that is
still on its list. It blocks in that read, so it costs no CPU, and unlike ``PR_SET_PDEATHSIG`` it works with
threads, after a change of user, and on macOS.

Run as a script, it imports the standard library only, to stay small and to start in milliseconds.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import BinaryIO

GRACE_S = 10.0


class Guardian:
    """The supervisor's handle: what is told to :meth:`watch` is stopped when this process dies."""

    def __init__(self) -> None:
        self._watched: dict[int, signal.Signals] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def watch(self, pid: int, stop_signal: signal.Signals) -> None:
        """Put a process group on the list, with the signal that ends it in good order."""
        self._watched[pid] = stop_signal
        if self._process is None or self._process.poll() is not None:
            self._start()
        else:
            self._send(f"+{pid} {int(stop_signal)}\n")

    def forget(self, pid: int) -> None:
        """Take a process group that has ended off the list, before its id can belong to another."""
        if self._watched.pop(pid, None) is not None:
            self._send(f"-{pid}\n")

    def close(self) -> None:
        """Let the guardian end; it first stops whatever is still on its list."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()
        self._process = None
        self._watched.clear()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        for pid, stop_signal in self._watched.items():
            self._send(f"+{pid} {int(stop_signal)}\n")

    def _send(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            # A guardian that died is replaced at the next `watch`, which tells the new one the whole list.
            with suppress(BrokenPipeError):
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()


def _read_until_closed(pipe: BinaryIO) -> dict[int, int]:
    watched: dict[int, int] = {}
    for line in pipe:
        if line.startswith(b"+"):
            pid, stop_signal = line[1:].split()
            watched[int(pid)] = int(stop_signal)
        else:
            watched.pop(int(line[1:]), None)
    return watched


def _signal_all(groups: dict[int, int]) -> list[int]:
    """Send each group its signal (0 only looks) and return those that are still there."""
    present = []
    for pid, number in groups.items():
        try:
            os.killpg(pid, number)
        except (ProcessLookupError, PermissionError):
            continue
        present.append(pid)
    return present


def main() -> None:
    """Wait for the supervisor's end, then stop what it left: in good order, by force after ``GRACE_S``."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # The latest started first: the processes before the servers that they use.
    left = dict(reversed(_read_until_closed(sys.stdin.buffer).items()))
    _signal_all(left)
    deadline = time.monotonic() + GRACE_S
    while _signal_all(dict.fromkeys(left, 0)) and time.monotonic() < deadline:
        time.sleep(0.1)
    _signal_all(dict.fromkeys(left, int(signal.SIGKILL)))


if __name__ == "__main__":
    main()
