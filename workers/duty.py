"""Duties: what a process does again and again, each in a loop of its own: one that fails or hangs stops no other."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
from sqlalchemy.exc import SQLAlchemyError

from models.database import classify, describe
from workers.publisher import BrokerUnavailable

_OUTSIDE_ERRORS = (SQLAlchemyError, OSError, BrokerUnavailable)
"""What comes from other processes; anything else is a fault of the duty's, and its traceback is logged."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Duty:
    """Something to perform every ``interval_s`` seconds; it is cancelled, until the next time, after ``limit_s``."""

    name: str
    interval_s: float
    perform: Callable[[], Awaitable[object]]
    limit_s: float = 60.0


async def keep_performing(duty: Duty) -> None:
    """Perform a duty until cancelled, whatever it raises."""
    while True:
        await perform_once(duty)
        await asyncio.sleep(duty.interval_s)


async def perform_once(duty: Duty) -> None:
    """Perform a duty within its limit; what it raises is logged."""
    try:
        async with asyncio.timeout(duty.limit_s):
            await duty.perform()
    except Exception as error:
        log.warning(
            "relay.duty_failed",
            duty=duty.name,
            error=describe(error),
            kind=classify(error) or type(error).__name__,
            exc_info=not isinstance(error, _OUTSIDE_ERRORS),
        )
