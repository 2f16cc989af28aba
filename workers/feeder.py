"""The feeder: keeps a small buffer of unpublished jobs for every queue and tenant that has batches.

The buffer is two windows, so that the relay does not wait for rows, and no larger, so that priority and fairness among
a tenant's batches take effect soon.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from uuid import UUID

from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import fetch_all, fetch_one
from models.feeding import FEED, SELECT_CAPACITY, SELECT_FED, Hungry, share_out
from models.ids import new_id
from workers.settings import RelaySettings

_WINDOWS = 2
_CAPACITY_S = 1.0
_MOST_BUFFERS = 4
"""A batch whose jobs wait for their retries is fed on until it has this many times its buffer in jobs."""

_MOST_ROWS = 500
"""Rows of one statement: some tens of milliseconds."""

_SPARSE_ROWS, _MOST_SPANS = 5000, 40
"""Rows that a statement looks at where few of them may become jobs, and how often it does before others have a turn."""


@dataclass(frozen=True, slots=True)
class Meal:
    """What one feeding did: how many jobs it made, and whether a buffer had run dry before."""

    rows: int
    ran_dry: bool


class Feeder:
    """Makes jobs of the rows of batches, for all queues."""

    def __init__(self, engine: AsyncEngine, settings: RelaySettings) -> None:
        self._engine = engine
        self._settings = settings
        self._buffers: Mapping[str, int] = {}
        self._look_at = 0.0

    async def feed(self) -> Meal | None:
        """Top up every buffer that is half empty; None when no batch has rows to feed."""
        batches = await fetch_all(self._engine, SELECT_FED)
        if not batches:
            return None
        await self._look_at_capacity({queue for batch in batches for queue in batch["queues"]})
        rows, ran_dry = 0, False
        for group in _by_tenant_and_queues(batches).values():
            buffer = sum(self._buffers[queue] for queue in group[0]["queues"])
            waiting = sum(batch["unpublished"] for batch in group)
            if waiting > buffer // 2 and len({batch["priority"] for batch in group}) == 1:
                continue
            ran_dry = ran_dry or not waiting
            shares = share_out([_hungry(batch, _MOST_BUFFERS * buffer) for batch in group], buffer)
            for batch in group:
                rows += await self._feed(batch, min(shares.get(batch["id"], 0), _MOST_ROWS))
        return Meal(rows, ran_dry)

    async def _look_at_capacity(self, queues: set[str]) -> None:
        if monotonic() < self._look_at and queues <= self._buffers.keys():
            return
        self._look_at = monotonic() + _CAPACITY_S
        rows = await fetch_all(self._engine, SELECT_CAPACITY, {"queues": sorted(queues)})
        window = self._settings.window_factor
        self._buffers = {
            row["queue"]: _WINDOWS * max(self._settings.window_min, int(window * row["capacity"])) for row in rows
        }

    async def _feed(self, batch: RowMapping, rows: int) -> int:
        if not rows:
            return 0
        position = {name: batch[name] for name in ("id", "next_row", "round", "last_round")}
        span = _SPARSE_ROWS if batch["dedupe"] else rows
        made = 0
        for _ in range(_MOST_SPANS):
            missing = rows - made
            ids = [new_id() for _ in range(missing)]
            fed = await fetch_one(self._engine, FEED, {**position, "rows": missing, "span": span, "ids": ids})
            if fed is None:
                break
            made += fed["rows"]
            if made == rows or fed["passed"]:
                break
            position |= {"next_row": fed["next_row"], "round": fed["round"]}
        return made


def _by_tenant_and_queues(rows: Sequence[RowMapping]) -> dict[tuple[UUID, tuple[str, ...]], list[RowMapping]]:
    groups: dict[tuple[UUID, tuple[str, ...]], list[RowMapping]] = {}
    for row in rows:
        groups.setdefault((row["tenant_id"], tuple(sorted(row["queues"]))), []).append(row)
    return groups


def _hungry(row: RowMapping, most: int) -> Hungry:
    return Hungry(
        row["id"], row["priority"], row["unfinished"], row["unpublished"], min(row["max_parallel"] or most, most)
    )
