"""What can go wrong while running on one machine; the command line shows these as one line, without a
traceback.

LocalError              something the user can put right: a port, a directory, a missing package
  StartError            a process did not come up; carries the last lines that it wrote
Interrupted             a signal asked to stop; not an error
"""

from collections.abc import Sequence


class LocalError(Exception):
    """An expected failure, worded for the person who typed the command."""


class StartError(LocalError):
    """A process did not start; ``details`` holds the last lines that it wrote."""

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.details = tuple(details)


class Interrupted(Exception):
    """Raised inside the supervisor's calls when a signal asked it to stop."""
