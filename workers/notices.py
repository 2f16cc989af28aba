"""Events of the platform's own, recorded when Postgres can take them."""

import asyncio
from collections.abc import Mapping

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import describe, dump_json, fetch_all
from models.event import RECORD_PLATFORM_EVENT
from models.ids import new_id

MOST_KEPT = 100
_RETRY_S = 1.0

log = structlog.get_logger()


class Notices:
    """Keeps events in their order until they are recorded; of more than can be kept, the latest are left out."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._kept: asyncio.Queue[dict[str, object]] = asyncio.Queue(MOST_KEPT)

    def record(self, kind: str, payload: Mapping[str, object]) -> None:
        """Have an event recorded; returns at once."""
        try:
            self._kept.put_nowait({"id": new_id(), "type": kind, "payload": dump_json(payload)})
        except asyncio.QueueFull:
            log.warning("notices.full", type=kind)

    async def keep(self) -> None:
        """Record what comes, for ever; Postgres may go away and come back."""
        while True:
            event = await self._kept.get()
            while not await self._record(event):  # noqa: ASYNC110 - nobody tells when Postgres is back
                await asyncio.sleep(_RETRY_S)

    async def _record(self, event: Mapping[str, object]) -> bool:
        try:
            await fetch_all(self._engine, RECORD_PLATFORM_EVENT, event)
        except (SQLAlchemyError, OSError) as error:
            log.warning("notices.not_recorded", error=describe(error))
            return False
        return True
