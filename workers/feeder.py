"""The feeder: keeps a small buffer of unpublished jobs for every queue that batches have rows for.

The buffer is two windows, so that the relay does not wait for rows, and no larger, so that priority and fairness among
batches take effect soon. The tenants of a queue share it: those that were fed longest ago come first.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from uuid import UUID

from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import fetch_all, fetch_one
from models.feeding import FEED, SELECT_CAPACITY, SELECT_FED, Hungry, Waiting, share_buffer, share_out
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

_LOOK_PART = 5
"""The feeder rests this many times what it took to look at the batches."""

_MOST_FEEDING_S = 0.25
"""Seconds after which it looks again, though not all were fed: there may be a new batch."""

_WHOLE_S = 10.0
"""Seconds after which the unfinished jobs of batches are looked for from the first job on."""

_Group = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Meal:
    """What one feeding did: how many jobs it made, whether a buffer had run dry before, and how long to rest."""

    rows: int
    ran_dry: bool
    rest_s: float


@dataclass(slots=True)
class _Portion:
    """The batches that get rows now, and how many; whether a tenant of them had no unpublished job left."""

    shares: list[tuple[RowMapping, int]]
    ran_dry: bool


class Feeder:
    """Makes jobs of the rows of batches, for all queues."""

    def __init__(self, engine: AsyncEngine, settings: RelaySettings) -> None:
        self._engine = engine
        self._settings = settings
        self._buffers: Mapping[str, int] = {}
        self._look_at = 0.0
        self._whole_at = 0.0
        self._first_jobs: dict[UUID, UUID] = {}
        self._order: Counter[UUID] = Counter()
        """When tenants and batches were fed, by ``_fed``."""
        self._fed = 0

    async def feed(self) -> Meal | None:
        """Top up every share of a buffer that is half empty; None when no batch has rows to feed."""
        started = monotonic()
        batches = await self._select_batches()
        rest_s = _LOOK_PART * (monotonic() - started)
        if not batches:
            return None
        await self._look_at_capacity({queue for batch in batches for queue in batch["queues"]})
        groups = _group(batches)
        rows, ran_dry = 0, False
        until = monotonic() + _MOST_FEEDING_S
        for queues, tenants in groups.items():
            portion = self._portion(tenants, self._buffer(queues, groups))
            ran_dry = ran_dry or portion.ran_dry
            for batch, share in portion.shares:
                if monotonic() < until:
                    self._fed += 1
                    self._order[batch["id"]] = self._order[batch["tenant_id"]] = self._fed
                    rows += await self._feed(batch, share)
        return Meal(rows, ran_dry, rest_s)

    async def _select_batches(self) -> Sequence[RowMapping]:
        if monotonic() >= self._whole_at:
            self._whole_at = monotonic() + _WHOLE_S
            self._first_jobs = {}
        now = new_id()
        known = {"known": list(self._first_jobs), "first_jobs": list(self._first_jobs.values())}
        batches = await fetch_all(self._engine, SELECT_FED, known)
        self._first_jobs = {batch["id"]: batch["first_job"] or now for batch in batches}
        names = self._first_jobs.keys() | {batch["tenant_id"] for batch in batches}
        self._order = Counter({name: self._order[name] for name in names})
        return batches

    async def _look_at_capacity(self, queues: set[str]) -> None:
        if monotonic() < self._look_at and queues <= self._buffers.keys():
            return
        self._look_at = monotonic() + _CAPACITY_S
        rows = await fetch_all(self._engine, SELECT_CAPACITY, {"queues": sorted(queues)})
        window = self._settings.window_factor
        self._buffers = {
            row["queue"]: _WINDOWS * max(self._settings.window_min, int(window * row["capacity"])) for row in rows
        }

    def _buffer(self, queues: _Group, groups: Mapping[_Group, Mapping[UUID, object]]) -> int:
        """What a group's tenants share of the buffers of its queues, which other groups' tenants may use as well."""
        users = {queue: sum(len(tenants) for group, tenants in groups.items() if queue in group) for queue in queues}
        mine = len(groups[queues])
        return max(1, int(sum(self._buffers[queue] * mine / users[queue] for queue in queues)))

    def _portion(self, tenants: Mapping[UUID, list[RowMapping]], buffer: int) -> _Portion:
        names = sorted(tenants, key=self._order.__getitem__)
        groups = [sorted(tenants[name], key=lambda batch: self._order[batch["id"]]) for name in names]
        hungry = [[_hungry(batch, _MOST_BUFFERS * buffer) for batch in group] for group in groups]
        waiting = [_waiting(group[0]["weight"], batches) for group, batches in zip(groups, hungry, strict=True)]
        portion = _Portion([], ran_dry=False)
        for group, batches, tenant, share in zip(groups, hungry, waiting, share_buffer(waiting, buffer), strict=True):
            half_full = share // 2 < tenant.held and share < tenant.held + tenant.free
            if half_full and len({batch.priority for batch in batches}) == 1:
                continue
            rows = share_out(batches, share)
            portion.shares.extend((batch, min(rows[batch["id"]], _MOST_ROWS)) for batch in group if batch["id"] in rows)
            portion.ran_dry = portion.ran_dry or not tenant.held
        return portion

    async def _feed(self, batch: RowMapping, rows: int) -> int:
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
            span = _SPARSE_ROWS
        return made


def _group(rows: Sequence[RowMapping]) -> dict[_Group, dict[UUID, list[RowMapping]]]:
    """Batches by the queues that their rows go to, and by tenant."""
    groups: dict[_Group, dict[UUID, list[RowMapping]]] = {}
    for row in rows:
        groups.setdefault(tuple(sorted(row["queues"])), {}).setdefault(row["tenant_id"], []).append(row)
    return groups


def _waiting(weight: int, batches: Sequence[Hungry]) -> Waiting:
    return Waiting(sum(batch.unpublished for batch in batches), sum(batch.free for batch in batches), weight)


def _hungry(row: RowMapping, most: int) -> Hungry:
    return Hungry(
        row["id"], row["priority"], row["unfinished"], row["unpublished"], min(row["max_parallel"] or most, most)
    )
