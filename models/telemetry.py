"""Logs: one event per line, with a name and fields; never a prompt, an answer or a key."""

import logging
import os
import sys

import structlog


def configure_logging() -> None:
    """Send structlog's events and the libraries' warnings to standard error.

    Readable on a terminal and under a supervisor; JSON lines with ``HEADRACE_LOG=json``.
    """
    as_json = os.environ.get("HEADRACE_LOG") == "json"
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
