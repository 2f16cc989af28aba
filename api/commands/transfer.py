"""Files on their way: a batch's file up to the API, its results down, each read and written piece by piece."""

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from api.commands.client import Api, patiently
from api.commands.errors import CommandError
from api.commands.wording import Json, plain, size

UPLOAD_PATH = "/v1/batches/upload"
UPLOAD_TIMEOUT_S = 1800.0
"""A file of millions of rows is checked and recorded before the API answers."""
STANDARD_OUTPUT = Path("-")
_JSONL = frozenset({".jsonl", ".ndjson"})


class Outgoing:
    """An opened file that tells how much of it has been read, of the size that it had at first."""

    def __init__(self, file: BinaryIO, on_read: Callable[[int], None]) -> None:
        self._file = file
        self._on_read = on_read
        self.size = os.fstat(file.fileno()).st_size

    def fileno(self) -> int:
        """For whoever asks for the file's size."""
        return self._file.fileno()

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place in the file."""
        return self._file.seek(offset, whence)

    def read(self, limit: int = -1) -> bytes:
        """The next piece; a file that grows meanwhile is sent as it was."""
        left = max(0, self.size - self._file.tell())
        piece = self._file.read(left if limit < 0 else min(limit, left))
        self._on_read(self._file.tell())
        return piece


def upload(
    api: Api, path: Path, fields: Mapping[str, str], console: Console, to: str = UPLOAD_PATH, key: str | None = None
) -> Json:
    """Send a batch's file with a bar; the API's answer. Raises Refused, NoAnswer and OSError.

    With an idempotency ``key``, sending it again never makes a second batch.
    """
    with path.open("rb") as file, _upload_bar(console) as bar:
        task = bar.add_task("sending", total=os.fstat(file.fileno()).st_size or None)

        def on_read(sent: int) -> None:
            total = bar.tasks[0].total
            checking = total is not None and sent >= total
            bar.update(task, completed=sent, description="checking" if checking else "sending")

        outgoing = Outgoing(file, on_read)
        headers = None if key is None else {"idempotency-key": key}
        return api.send_form(to, fields, (_sendable(path.name), outgoing), UPLOAD_TIMEOUT_S, headers)


def announce(path: Path, console: Console) -> None:
    """Say that a file is sent, unless a terminal shows a progress bar. Raises OSError."""
    if not console.is_terminal:
        console.print(f"sending {plain(path)} ({size(path.stat().st_size)})", soft_wrap=True, markup=False)


def _sendable(name: str) -> str:
    """A file's name as text: a name is bytes, and they may not be UTF-8."""
    return os.fsencode(name).decode(errors="replace")


def _upload_bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=console, transient=True, expand=True, disable=not console.is_terminal)


def check_target(target: Path, source: Path | None = None) -> None:
    """Find out before anything costs money that results could not be written; raises CommandError."""
    if target == STANDARD_OUTPUT:
        return
    if source is not None and target.exists() and target.samefile(source):
        raise CommandError(f"{target} is the file to be read; the results need another")
    if target.is_dir():
        raise CommandError(f"{target} is a directory")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        reason = "cannot be written to" if target.parent.exists() else "does not exist"
        raise CommandError(f"the directory {target.parent} {reason}")


def format_of(target: Path) -> str:
    """The results' format by the name of their file."""
    return "jsonl" if target.suffix.lower() in _JSONL else "csv"


def fetch_results(api: Api, batch_id: str, target: Path, asked: Mapping[str, str | None], console: Console) -> int:
    """Write the results as they are now, whole or not at all; the number of bytes. ``asked`` are query parameters.

    Raises Refused, OSError, and NoAnswer when the API stays away.
    """
    if target == STANDARD_OUTPUT:
        return _copy(api, batch_id, asked, sys.stdout.buffer)
    if target.exists() and not target.is_file():  # a pipe or a device, which nothing may take the place of
        with target.open("wb") as file:
            return _copy(api, batch_id, asked, file)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.part")
    with console.status(f"writing {plain(target)}") as status, contextlib.ExitStack() as cleanup:
        cleanup.callback(scratch.unlink, missing_ok=True)

        def attempt() -> int:
            with scratch.open("wb") as file:
                written = _copy(api, batch_id, asked, file)
                file.flush()
                os.fsync(file.fileno())
            return written

        written = patiently(attempt, lambda text: status.update(f"{plain(text)}; trying again"))
        scratch.replace(target)
    return written


def _copy(api: Api, batch_id: str, asked: Mapping[str, str | None], file: BinaryIO) -> int:
    written = 0
    with api.stream(f"/v1/batches/{batch_id}/results", **asked) as pieces:
        for piece in pieces:
            written += file.write(piece)
    return written
