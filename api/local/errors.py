"""What can go wrong while running on one machine; the command line shows these as one line, without a
traceback. The numbers are the exit codes.

LocalError           1  something the user can put right: a port, a directory, a missing package
  StartError         1  a process did not come up; carries the last lines that it wrote
  SettingsError      2  a setting, or a file that one names, cannot be used
  Unanswered         3  Postgres or the API does not answer, or not now; the same command may succeed later
  Stopped          130  a signal ended the command before it had done its work
Interrupted             a signal asked to stop; not an error
"""

from collections.abc import Sequence


class LocalError(Exception):
    """An expected failure, worded for the person who typed the command."""

    exit_code = 1


class StartError(LocalError):
    """A process did not start; ``details`` holds the last lines that it wrote."""

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.details = tuple(details)


class SettingsError(LocalError):
    """A setting, or a file that one names, cannot be used as it is."""

    exit_code = 2


class Unanswered(LocalError):
    """Postgres or the API does not answer, or not now."""

    exit_code = 3


class Stopped(LocalError):
    """A signal ended a command before it had done its work."""

    exit_code = 130


class Interrupted(Exception):
    """Raised inside the supervisor's calls when a signal asked it to stop."""
