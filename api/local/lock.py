"""One owner per directory, for as long as the owner's process lives."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from api.local.errors import LocalError


class DirectoryLock:
    """An advisory lock on a file, which the kernel drops when its holder dies, ``kill -9`` included.

    The file stays where it is: removing it would let two processes lock two files of the same name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock, or do nothing where this object holds it already.

        Raises LocalError, naming the holder's process id, when another one has it.
        """
        if self._descriptor is not None:
            return
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise LocalError(
                f"{self.path.parent} is in use by another Headrace (process {holder}); "
                "stop it, or choose another --data-dir"
            ) from None
        self._descriptor = descriptor
        # Only a help to whoever is refused: a full disk is no reason not to start.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
