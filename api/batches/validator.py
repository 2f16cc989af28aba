"""A process that reads one batch's input file and ends, so that a large one is no burden to the API's.

    python -m api.batches.validator      (its order comes on standard input)

It ends when the API does: its standard input is closed then. Nothing of the rows can run before all are stored.
"""

import asyncio
import os
import sys
import threading
from uuid import UUID

import structlog
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from api.batches.validation import validate
from api.counters import Counters
from api.ratelimits import RateLimiter
from api.settings import ApiSettings
from models.catalog import load_catalog
from models.database import create_engine
from models.errors import Unavailable
from models.routing import Router, Vitals
from models.telemetry import configure_logging
from models.wakeups import Wakeups

_NICENESS = 5

log = structlog.get_logger()


class Order(BaseModel):
    """Which batch, and what the API knows of the LLMs."""

    batch_id: UUID
    settings: ApiSettings
    vitals: dict[str, Vitals]


async def run(order: Order) -> None:
    """Validate a batch."""
    settings = order.settings
    catalog = load_catalog(settings.catalog, settings.optional_llms)
    engine = create_engine(settings.database_url, name="validator", pool_size=3)
    wakeups = Wakeups(settings.redis_url)
    counters = Counters(settings.redis_url, timeout_s=settings.rate_limit_timeout_s)
    limiter = RateLimiter(catalog.plans, counters)
    try:
        await validate(engine, order.batch_id, catalog, Router(catalog, order.vitals), wakeups, limiter)
    except (SQLAlchemyError, OSError, Unavailable) as error:
        log.warning("batch.waits", batch_id=order.batch_id.hex, error=str(error).partition("\n")[0])
    finally:
        await counters.close()
        await wakeups.close()
        await engine.dispose()


def main() -> None:
    """Do what the one line of standard input orders, as long as its other end is there."""
    configure_logging()
    os.nice(_NICENESS)
    order = Order.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_watch, daemon=True).start()
    asyncio.run(run(order))


def _watch() -> None:
    while sys.stdin.buffer.read(1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
