"""Log files that cannot fill the disk, and a terminal that cannot block the processes behind it."""

import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Self, TextIO

LOG_BYTES = 5_000_000
COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)


class RotatingLog:
    """A log file of at most ``limit`` bytes, with one older file of the same size beside it."""

    def __init__(self, path: Path, limit: int = LOG_BYTES) -> None:
        self.path = path
        self._limit = limit
        self.file = self._open()

    def write(self, line: bytes) -> None:
        """Append a line, which the caller ended; a full disk drops it rather than the process."""
        with suppress(OSError):
            if self.file.tell() + len(line) > self._limit:
                full, self.file = self.file, self._open()
                full.close()
            self.file.write(line)

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open(self) -> BinaryIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and self.path.stat().st_size > self._limit * 0.9:
            self.path.replace(self.path.with_name(f"{self.path.name}.1"))
        file = self.path.open("ab", buffering=0)
        os.fchmod(file.fileno(), 0o600)
        return file


def tail(path: Path, lines: int = 12) -> list[str]:
    """The last lines of a file; none when it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            return [line.decode(errors="replace").rstrip() for line in deque(file, maxlen=lines)]
    except OSError:
        return []


class Terminal:
    """Writes the processes' lines to a stream, each with its process's name, from a thread of its own.

    A terminal can stop taking output (Ctrl-S, a full pipe). Then lines are dropped here, and stay in the log
    files, so that nothing behind them waits: a Postgres whose pipe nobody empties stops in the middle of its
    work.
    """

    def __init__(self, stream: TextIO | None = None, colour: bool | None = None, backlog: int = 4_000) -> None:
        self._stream = stream or sys.stdout
        self._colour = self._wants_colour() if colour is None else colour
        self._names: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue(backlog)
        self._thread = threading.Thread(target=self._drain, name="terminal", daemon=True)
        self._thread.start()

    def show(self, name: str, line: str) -> None:
        """Write a line of a process."""
        if name not in self._names:
            self._names.append(name)
        width = max(10, *map(len, self._names))
        prefix = f"{name:<{width}} |"
        if self._colour:
            prefix = f"\x1b[{COLOURS[self._names.index(name) % len(COLOURS)]}m{prefix}\x1b[0m"
        self.say(f"{prefix} {line}")

    def say(self, text: str) -> None:
        """Write text as it is."""
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            return

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is waiting, as far as the terminal takes it in time."""
        try:
            self._lines.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _drain(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                # The terminal was closed: go on taking lines, for whoever put them there must not wait.
                continue

    def _wants_colour(self) -> bool:
        return self._stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def indent(lines: Sequence[str], by: str = "    ") -> str:
    """Lines as one block of text, moved to the right."""
    return "\n".join(f"{by}{line}".rstrip() for line in lines)
