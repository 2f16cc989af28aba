"""The dispatcher: marks jobs as published and sends their messages, a bounded window per queue.

Single jobs and rows of batches have a dispatcher each, which work side by side: a single job does not wait until many
rows are marked and sent.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import transaction
from models.dispatch import DISPATCH
from workers.publisher import Publisher, to_messages
from workers.rotation import Ask, Rotation
from workers.settings import RelaySettings
from workers.windows import Window, Windows

_ROWS_AT_A_TIME = 2
"""Rows of batches are published when this part of the window that single jobs leave is free, so that they go in few
messages; single jobs are at once."""

_SPARE = 8
"""Single jobs may exceed the window by this part of it, so that they need not wait for rows to end."""

_MOST_CHOICES = 8
"""A window is filled by at most so many choices at one look: tenants may have fewer jobs than their shares."""


class Dispatcher:
    """Publishes what is due of all queues: ``rows`` of batches, or single jobs.

    ``left_any``: some may be left unpublished, for want of room.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        publisher: Publisher,
        settings: RelaySettings,
        windows: Windows,
        *,
        rows: bool,
    ) -> None:
        self._engine = engine
        self._publisher = publisher
        self._settings = settings
        self._windows = windows
        self._rows = rows
        self.left_any = True

    async def dispatch(self) -> None:
        """Fill every queue's window once; raises BrokerUnavailable, and then nothing is marked in that queue."""
        self.left_any = True
        try:
            windows = await self._windows.look()
            for window in windows:
                room = self._room(window)
                if room > 0 and window.rotation.waits(rows=self._rows):
                    await self.fill(window, room)
        except Exception:
            self._windows.forget(self._windows.queues)
            raise
        self.left_any = any(window.rotation.waits(rows=self._rows) for window in windows)

    def _room(self, window: Window) -> int:
        size = max(self._settings.window_min, int(self._settings.window_factor * window.capacity))
        room = size - window.filled
        if not self._rows:
            return room + max(1, size // _SPARE)
        return room if room >= (size - window.singles) // _ROWS_AT_A_TIME else 0

    async def fill(self, window: Window, room: int) -> None:
        """Publish up to ``room`` jobs of a queue, in fair order."""
        published = Counter(window.published)
        for _ in range(_MOST_CHOICES):
            asks = window.rotation.choose(room, published)
            result = await self._publish(window, asks, room)
            outcome = note(asks, result, window.rotation)
            if outcome.chosen >= room or not (outcome.published or outcome.exhausted):
                return
            if not window.rotation.waits(rows=self._rows):
                return
            room -= outcome.published.total()
            published += outcome.published

    async def _publish(self, window: Window, asks: Sequence[Ask], room: int) -> Sequence[RowMapping]:
        """Mark and send the next jobs; the rows of DISPATCH."""
        async with transaction(self._engine) as connection:
            params = dispatch_params(window.queue, asks, room, rows=self._rows)
            chosen = (await connection.execute(DISPATCH, params)).mappings().all()
            ids = [row["id"].hex for row in chosen if row["marked"]]
            if ids:
                messages = to_messages(ids, window.largest, self._settings.jobs_per_message, rows=self._rows)
                await asyncio.to_thread(self._publisher.publish, window.queue, messages)
        return chosen


def dispatch_params(queue: str, asks: Sequence[Ask], room: int, *, rows: bool) -> Mapping[str, object]:
    """The parameters of ``models.dispatch.DISPATCH``."""
    return {
        "queue": queue,
        "rows": rows,
        "room": room,
        "tenants": [ask.tenant_id for ask in asks],
        "priorities": [ask.priority for ask in asks],
        "since": [ask.since for ask in asks],
        "weights": [ask.weight for ask in asks],
        "published": [ask.published for ask in asks],
        "served": [ask.served for ask in asks],
        "most": [ask.most for ask in asks],
    }


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one choice: how many jobs were ``chosen`` of both kinds, how many of each tenant were published, and how many
    of what was asked for have no due job left."""

    chosen: int
    published: Counter[UUID]
    exhausted: int


def note(asks: Sequence[Ask], rows: Sequence[Mapping[Any, Any]], rotation: Rotation) -> Outcome:
    """Tell a queue's rotation what DISPATCH returned."""
    jobs: dict[int, list[Mapping[Any, Any]]] = {}
    found: dict[int, int] = {}
    for row in rows:
        if row["found"] is None:
            jobs.setdefault(row["place"], []).append(row)
        else:
            found[row["place"]] = row["found"]
    published: Counter[UUID] = Counter()
    exhausted = 0
    for place in jobs.keys() | found.keys():
        ask, chosen = asks[place - 1], jobs.get(place, [])
        marked = [row["marked"] for row in chosen]
        if marked.count(True):
            published[ask.tenant_id] += marked.count(True)
        if marked.count(True) == found.get(place):
            rotation.advance(ask, None)
            exhausted += 1
        elif chosen:
            first_left = marked.index(False) if False in marked else -1
            rotation.advance(ask, chosen[first_left]["next_attempt_at"])
    for tenant_id, number in published.items():
        rotation.serve(tenant_id, number)
    return Outcome(sum(map(len, jobs.values())), published, exhausted)
