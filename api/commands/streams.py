"""The standard streams of a command: a terminal, a pipe or a locale that cannot take the output causes no traceback."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_NAMES = ("stdin", "stdout", "stderr")


def prepare_streams() -> None:
    """Open streams that the caller closed, and write characters that an encoding lacks in an escaped form.

    Without this the next file or connection gets the number of a closed descriptor. Writing to a closed output still
    fails, and a closed input reads as empty.
    """
    for number, name in enumerate(_NAMES):
        if getattr(sys, name) is None:
            setattr(sys, name, _open_closed(number))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def read_input() -> bytes:
    """All of the standard input."""
    return sys.stdin.buffer.read()


@contextmanager
def written_out() -> Iterator[None]:
    """Flush the output at the end of a command; when that fails, end with 1.

    A full disk is reported in one line. A reader that has closed its pipe (``| head -1``) is not.
    """
    failed: OSError | None = None
    try:
        yield
    except OSError as error:  # written before a command starts, such as its help
        failed = error
    finally:
        problem = _flush(sys.stdout) or failed
        if problem is not None and not isinstance(problem, BrokenPipeError):
            print(f"headrace: cannot write the output: {problem.strerror or problem}", file=sys.stderr)
        _flush(sys.stderr)
        if problem is not None:
            raise SystemExit(1)


def _flush(stream: TextIO) -> OSError | None:
    try:
        stream.flush()
    except OSError as error:
        # What is still in the buffer would be written, and fail, once more when the interpreter ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        return error
    return None


def _open_closed(number: int) -> TextIO:
    """A stream in place of a closed one: it reads as empty, and writing to it fails."""
    mode = os.O_WRONLY if number == 2 else os.O_RDONLY
    descriptor = os.open(os.devnull, mode)
    if descriptor != number:
        os.dup2(descriptor, number)
        os.close(descriptor)
    return open(number, "w" if number else "r", encoding="utf-8", closefd=False)
