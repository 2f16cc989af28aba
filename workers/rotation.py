"""Which tenants of a queue have due jobs, and which of them is served next.

A tenant is served by the jobs that it has published for its weight: the fewest first. Among tenants with as many, the
one that was served least goes first, which a clock of the queue measures (start-time fair queueing, Goyal, Vin and
Cheng, SIGCOMM 1996): a job moves its tenant on by 1 / weight. A tenant that comes back or is new starts one step behind
the clock: it goes first, but gains nothing by the time that it did not wait.

All of it is the memory of one relay. Several relays rotate each by itself, which is fair in sum, and a relay that
starts anew has served nobody, in an order drawn by lot.
"""

import heapq
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from models.dispatch import FIRST_BATCH_PRIORITY

_SPARE = 2
"""Jobs of a tenant are looked for in this multiple of its share, since other tenants may have fewer than theirs."""


@dataclass(frozen=True, slots=True)
class Found:
    """A tenant has due jobs of a priority, none of them due before ``first``."""

    tenant_id: UUID
    weight: int
    priority: int
    first: datetime


@dataclass(frozen=True, slots=True)
class Ask:
    """Up to ``most`` due jobs of a tenant and priority, as a place in the arrays of ``models.dispatch.DISPATCH``."""

    tenant_id: UUID
    priority: int
    since: datetime
    weight: int
    published: int
    served: float
    most: int
    version: int


@dataclass(slots=True)
class _Level:
    since: datetime
    version: int


@dataclass(slots=True)
class _Tenant:
    weight: int
    lot: float
    served: float
    levels: dict[int, _Level] = field(default_factory=dict)


class Rotation:
    """The tenants that wait in one queue, and how much each was served."""

    def __init__(self) -> None:
        self._tenants: dict[UUID, _Tenant] = {}
        self._clock = 0.0
        self._version = 0

    def waits(self, *, rows: bool) -> bool:
        """Whether due ``rows`` of batches, or single jobs, are known."""
        return any(
            (level >= FIRST_BATCH_PRIORITY) == rows for tenant in self._tenants.values() for level in tenant.levels
        )

    def add(self, found: Iterable[Found]) -> None:
        """Tenants have due jobs."""
        self._version += 1
        for job in found:
            tenant = self._tenants.get(job.tenant_id)
            if tenant is None:
                tenant = self._tenants[job.tenant_id] = _Tenant(job.weight, random.random(), self._clock - 1)
            tenant.weight = job.weight
            level = tenant.levels.get(job.priority)
            since = job.first if level is None else min(level.since, job.first)
            tenant.levels[job.priority] = _Level(since, self._version)

    @property
    def version(self) -> int:
        """It changes whenever jobs are found."""
        return self._version

    def replace(self, found: Iterable[Found], version: int) -> None:
        """These tenants have due jobs, and no others but those found since ``version``."""
        for tenant in self._tenants.values():
            tenant.levels = {key: level for key, level in tenant.levels.items() if level.version > version}
        self.add(found)
        idle = [key for key, tenant in self._tenants.items() if not tenant.levels and tenant.served <= self._clock - 1]
        for key in idle:
            del self._tenants[key]

    def choose(self, room: int, published: Mapping[UUID, int]) -> list[Ask]:
        """What to look for so that ``room`` jobs are found, of as few tenants as share them."""
        turns = [
            (published.get(key, 0) // tenant.weight, self._served(tenant), tenant.lot, key)
            for key, tenant in self._tenants.items()
            if tenant.levels
        ]
        heapq.heapify(turns)
        shares: dict[UUID, int] = {}
        for _ in range(room if turns else 0):
            _, served, lot, key = turns[0]
            shares[key] = shares.get(key, 0) + 1
            weight = self._tenants[key].weight
            level = (published.get(key, 0) + shares[key]) // weight
            heapq.heapreplace(turns, (level, served + 1 / weight, lot, key))
        return [ask for key, share in shares.items() for ask in self._asks(key, share, room, published.get(key, 0))]

    def serve(self, tenant_id: UUID, jobs: int) -> None:
        """Jobs of a tenant were published."""
        tenant = self._tenants.get(tenant_id)
        if tenant is None:
            return  # the other dispatcher has seen in the meantime that nothing of it waits
        start = self._served(tenant)
        tenant.served = start + jobs / tenant.weight
        self._clock = max(self._clock, tenant.served - 1 / tenant.weight)

    def advance(self, ask: Ask, since: datetime | None) -> None:
        """Of what was asked for, nothing is left before ``since``, or nothing at all."""
        tenant = self._tenants.get(ask.tenant_id)
        level = None if tenant is None else tenant.levels.get(ask.priority)
        if tenant is None or level is None or level.version != ask.version:
            return  # more were found in the meantime
        if since is None:
            del tenant.levels[ask.priority]
        else:
            level.since = since

    def _served(self, tenant: _Tenant) -> float:
        return max(tenant.served, self._clock - 1)

    def _asks(self, tenant_id: UUID, share: int, room: int, published: int) -> Iterable[Ask]:
        tenant = self._tenants[tenant_id]
        served = self._served(tenant)
        levels = sorted(tenant.levels.items())
        if share == 1 < room:  # with many tenants: one of the first priority, and if there is none, another choice
            levels, most = levels[:1], 1
        else:
            most = min(room, _SPARE * share)
        for priority, level in levels:
            yield Ask(tenant_id, priority, level.since, tenant.weight, published, served, most, level.version)
