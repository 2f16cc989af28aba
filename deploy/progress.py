"""Runs a long command and shows that it lives.

On a terminal one line is rewritten with the seconds gone and the command's last step; elsewhere a line is
printed now and then.
"""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

_REPORT_EVERY_S = 10.0
_SHOWN_ON_FAILURE = 40


class CommandError(Exception):
    """The command failed; the message ends with what it printed last."""


def say(text: str) -> None:
    """Print a line where it does not mix with what a program's caller reads."""
    print(f"headrace: {text}", file=sys.stderr, flush=True)


def follow(
    what: str,
    command: Sequence[str],
    *,
    step: re.Pattern[str],
    log: Path,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run a command, adding its output to ``log``; ``step`` finds what to show in a line of it.

    Raises CommandError when the command fails.
    """
    with log.open("a") as output:
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        with process, _Ticker(what, sys.stderr) as ticker:
            assert process.stdout is not None
            for line in process.stdout:
                output.write(line)
                if found := step.search(line):
                    ticker.step = found[0]
    if process.returncode:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-_SHOWN_ON_FAILURE:])
        raise CommandError(f"{what} failed; the whole log is {log}, and this is its end:\n\n{last}")


class _Ticker:
    """The thread that shows the progress; the last line has the time that it took."""

    def __init__(self, what: str, stream: TextIO) -> None:
        self.step = ""
        self._what = what
        self._stream = stream
        self._started = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> "_Ticker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.step = ""
        self._show("\n")

    def _tick(self) -> None:
        every, end = (1.0, "") if self._stream.isatty() else (_REPORT_EVERY_S, "\n")
        self._show(end)
        while not self._ended.wait(every):
            self._show(end)

    def _show(self, end: str) -> None:
        rewind = "\r\033[K" if self._stream.isatty() else ""
        seconds = round(time.monotonic() - self._started)
        line = f"{rewind}headrace: {self._what}: {seconds} s  {self.step}"
        print(line.rstrip(), end=end, file=self._stream, flush=True)
