"""The dispatcher: marks jobs as published and sends their messages, a bounded window per queue.

Single jobs and rows of batches have a dispatcher each, which work side by side: a single job does not wait until many
rows are marked and sent.
"""

import asyncio
from collections.abc import Sequence

from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import fetch_all, transaction
from models.dispatch import DISPATCH, SELECT_ROOM, SELECT_ROOM_FOR_ROWS
from workers.publisher import Publisher, to_messages
from workers.settings import RelaySettings

_ROWS_AT_A_TIME = 2
"""Rows of batches are published when this part of the window that single jobs leave is free, so that they go in few
messages; single jobs are at once."""

_SPARE = 8
"""Single jobs may exceed the window by this part of it, so that they need not wait for rows to end."""


class Dispatcher:
    """Publishes what is due of all queues: ``rows`` of batches, or single jobs.

    ``left_any``: some may be left unpublished, for want of room or since they are not due yet.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        publisher: Publisher,
        settings: RelaySettings,
        queues: Sequence[str],
        *,
        rows: bool,
    ) -> None:
        self._engine = engine
        self._publisher = publisher
        self._settings = settings
        self._queues = queues
        self._rows = rows
        self.left_any = True

    async def dispatch(self) -> None:
        """Fill every queue's window once; raises BrokerUnavailable, and then nothing is marked in that queue."""
        statement = SELECT_ROOM_FOR_ROWS if self._rows else SELECT_ROOM
        self.left_any = True
        unpublished = await fetch_all(self._engine, statement, {"queues": self._queues})
        for queue in unpublished:
            room = self._room(queue)
            if room > 0:
                await self._fill(queue, room)
        self.left_any = bool(unpublished)

    def _room(self, queue: RowMapping) -> int:
        window = max(self._settings.window_min, int(self._settings.window_factor * queue["capacity"]))
        room: int = window - queue["published"]
        if not self._rows:
            return room + max(1, window // _SPARE)
        return room if room >= (window - queue["singles"]) // _ROWS_AT_A_TIME else 0

    async def _fill(self, queue: RowMapping, room: int) -> None:
        async with transaction(self._engine) as connection:
            params = {"queue": queue["queue"], "rows": self._rows, "room": room}
            ids = [job_id.hex for job_id in (await connection.execute(DISPATCH, params)).scalars()]
            if ids:
                messages = to_messages(ids, queue["largest"], self._settings.jobs_per_message, rows=self._rows)
                await asyncio.to_thread(self._publisher.publish, queue["queue"], messages)
