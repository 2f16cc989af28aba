"""What a relay knows of its queues' windows: the published jobs, and the tenants whose jobs are due.

Postgres is asked only about what is new since the last look: jobs that became due, and jobs published since the oldest
one that is still published. What such a look can miss is a statement that took long to commit, or another relay's;
all is read again from time to time, at once after an error, and when published jobs were made due again.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic
from uuid import UUID

from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import fetch_all
from models.dispatch import SELECT_WAITING, SELECT_WINDOWS
from workers.rotation import Found, Rotation

_MARGIN = timedelta(seconds=1)
"""How long a statement may take to commit what the next look must find."""

_WIDE_MARGIN, _WIDE_S = timedelta(seconds=15), 1.0
"""The same for a look each second."""

_WHOLE_S, _WHOLE_PART = 10.0, 50
"""All is read again after so many seconds, or so many times what reading it took."""

ALWAYS, NEVER = datetime(2000, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class _Marks:
    published_since: datetime = ALWAYS
    looked_at: datetime = ALWAYS
    wide_at: float = 0.0
    whole_at: float = 0.0

    def due_since(self, now: float) -> datetime:
        """The jobs that became due after this may be new."""
        return self.looked_at - (_WIDE_MARGIN if now >= self.wide_at else _MARGIN)


@dataclass(frozen=True, slots=True)
class Window:
    """A queue as of one look: its workers' ``capacity``, that of the ``largest``, and its published jobs."""

    queue: str
    capacity: int
    largest: int
    published: Mapping[UUID, int]
    singles: int
    rotation: Rotation

    @property
    def filled(self) -> int:
        """How many jobs are published."""
        return sum(self.published.values())


@dataclass(slots=True)
class Windows:
    """The windows of some queues, for the dispatchers of one relay."""

    engine: AsyncEngine
    queues: Sequence[str]
    _marks: dict[str, _Marks] = field(default_factory=dict)
    _rotations: dict[str, Rotation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rotations = {queue: Rotation() for queue in self.queues}
        self.forget(self.queues)

    def forget(self, queues: Iterable[str]) -> None:
        """Read all of these queues at the next look."""
        self._marks |= {queue: _Marks() for queue in queues}

    def published_since(self, queue: str) -> datetime:
        """A time before which no job was published that is still so; a look may have missed some."""
        return self._marks[queue].published_since

    async def look(self) -> list[Window]:
        """Every queue's window as it is now; on an error, all is to be forgotten."""
        started = monotonic()
        marks = dict(self._marks)
        whole = [queue for queue, mark in marks.items() if started >= mark.whole_at]
        params = {
            "queues": list(marks),
            "published_since": [ALWAYS if queue in whole else mark.published_since for queue, mark in marks.items()],
            "due_since": [NEVER if queue in whole else mark.due_since(started) for queue, mark in marks.items()],
        }
        for queue in whole:
            marks[queue].whole_at = math.inf
        rows = await fetch_all(self.engine, SELECT_WINDOWS, params)
        for row in rows:
            self._note(row, marks[row["queue"]], started)
        for queue in whole:
            before = self._rotations[queue].version
            found = await fetch_all(self.engine, SELECT_WAITING, {"queue": queue})
            self._rotations[queue].replace((Found(**row) for row in found), before)
            marks[queue].whole_at = monotonic() + max(_WHOLE_S, _WHOLE_PART * (monotonic() - started))
        return [self._window(row) for row in rows]

    def _note(self, row: RowMapping, mark: _Marks, started: float) -> None:
        looked_at = row["looked_at"]
        mark.published_since = min(row["oldest"] or looked_at, looked_at - _MARGIN)
        mark.looked_at = max(mark.looked_at, looked_at)
        if started >= mark.wide_at:
            mark.wide_at = started + _WIDE_S
        names = ("due_tenants", "due_weights", "due_priorities", "due_first")
        due = zip(*(row[name] or () for name in names), strict=True)
        self._rotations[row["queue"]].add(Found(*found) for found in due)

    def _window(self, row: RowMapping) -> Window:
        published = dict(zip(row["published_tenants"] or (), row["published_jobs"] or (), strict=True))
        return Window(
            row["queue"],
            row["capacity"],
            row["largest"],
            published,
            int(row["singles"]),
            self._rotations[row["queue"]],
        )
