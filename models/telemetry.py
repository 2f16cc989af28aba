"""Logs: one event per line, with a name and fields; never a prompt, an answer or a key.

A traceback names where an error arose and what kind it is. Of an error of Postgres it has the SQLSTATE and the primary
message: the rest (DETAIL, CONTEXT, the statement) holds pieces of rows, and rows hold prompts.
"""

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any, TextIO

import structlog
from pydantic import ValidationError

_CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"
_DATA_EXCEPTION = "22"
_MOST_ERRORS = 8


def configure_logging(stream: TextIO | None = None) -> None:
    """Send structlog's events and the libraries' warnings to standard error, or to ``stream``.

    Readable on a terminal and under a supervisor; JSON lines with ``HEADRACE_LOG=json``.
    """
    stream = stream or sys.stderr
    as_json = os.environ.get("HEADRACE_LOG") == "json"
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(lambda info: format_error(info[1])),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(stream),
    )
    logging.setLogRecordFactory(_Record)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=stream)


class _Record(logging.LogRecord):
    """A record of the standard library's, for libraries' own handlers too, whose traceback is ours."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: logging.LogRecord's
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[1] is not None:
            self.exc_text = format_error(self.exc_info[1])


def format_error(error: BaseException) -> str:
    """A traceback with what led to it; errors of Postgres without pieces of rows."""
    return "".join(_tell(error, set())).rstrip("\n")


def summarize(error: BaseException) -> str:
    """What an error says, without the values that errors of Postgres and of pydantic repeat."""
    cause = getattr(error, "orig", None)  # SQLAlchemy's error repeats its driver's, and adds the statement
    if isinstance(cause, BaseException):
        return summarize(cause)
    if isinstance(error, ValidationError):
        problems = [f"{'.'.join(map(str, one['loc']))} ({one['type']})" for one in error.errors(include_input=False)]
        return f"{len(problems)} problem{'s'[: len(problems) > 1]} of {error.title}: {', '.join(problems)}"
    diagnostics = getattr(error, "diag", None)
    if diagnostics is None or not hasattr(error, "sqlstate"):
        return str(error)
    primary = diagnostics.message_primary or str(error).partition("\n")[0]
    state = error.sqlstate or ""
    if state.startswith(_DATA_EXCEPTION):
        primary = primary.partition(': "')[0]  # what follows is the value that is not valid
    return f"{state} {primary}".strip()


def _tell(error: BaseException, told: set[int]) -> Iterator[str]:
    told.add(id(error))
    earlier, link = error.__cause__, _CAUSE
    if earlier is None and not error.__suppress_context__:
        earlier, link = error.__context__, _CONTEXT
    if earlier is not None and id(earlier) not in told and len(told) < _MOST_ERRORS:
        yield from _tell(earlier, told)
        yield link
    yield "Traceback (most recent call last):\n"
    yield from traceback.format_tb(error.__traceback__)
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    yield f"{name}: {summarize(error)}\n"
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            if len(told) < _MOST_ERRORS:
                yield from _tell(member, told)
