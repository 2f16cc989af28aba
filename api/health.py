"""Whether the parts of the system are there, asked at most once a second, however many callers ask."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import RowMapping
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from api.vitals import VitalSigns
from models.catalog import Catalog
from models.circuit import CircuitState
from models.database import SELECT_REVISION, newest_revision, older_revisions, read_all, read_one
from models.process import SELECT_BACKLOG, SELECT_LIVE
from models.wakeups import Wakeups

FRESH_S = 1.0
TIMEOUT_S = 3.0
MOST_COUNTED = 10_000
ESSENTIAL = ("postgres", "migrations")

State = Literal["ok", "degraded", "down"]
Part = dict[str, Any]  # Any: JSON
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Report:
    """The parts and what they add up to: ``down`` without an essential one, ``degraded`` without another, or where
    Postgres takes no writes, as a failover leaves it for a while: what is recorded can be read all the same."""

    parts: Mapping[str, Part]

    @property
    def status(self) -> State:
        if any(name in ESSENTIAL and part["status"] == "down" for name, part in self.parts.items()):
            return "down"
        return "ok" if all(part["status"] == "ok" for part in self.parts.values()) else "degraded"

    def as_wire(self) -> dict[str, Any]:
        """``{"status", "parts": {name: {"status", ...}}}``."""
        return {"status": self.status, "parts": self.parts}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the metrics show of the system: live processes and each queue's unfinished jobs."""

    processes: Sequence[RowMapping]
    backlog: Sequence[RowMapping]


class _Look(Generic[T]):
    """One look at a time: those who ask while one is under way share it, those who ask within a second after it share
    what it found, if that is worth keeping."""

    def __init__(self, look: Callable[[], Awaitable[T]], is_good: Callable[[T], bool]) -> None:
        self._look = look
        self._is_good = is_good
        self._found: tuple[float, T] | None = None
        self._looking: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """What was found, at most a second ago."""
        if self._found is not None and monotonic() < self._found[0]:
            return self._found[1]
        if self._looking is None:
            self._looking = asyncio.create_task(self._run())
        return await asyncio.shield(self._looking)

    async def _run(self) -> T:
        try:
            found = await self._look()
            self._found = (monotonic() + FRESH_S, found) if self._is_good(found) else None
            return found
        finally:
            self._looking = None


class Health:
    """Asks Postgres, Redis and the processes; what it found is good for a second.

    ``renew``: drops the process's connections to Postgres. It is called when the server takes no writes: they may lead
    to one that was demoted, and would go on reading what is no longer true.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        wakeups: Wakeups,
        catalog: Catalog,
        vitals: VitalSigns,
        renew: Callable[[], Awaitable[None]],
    ) -> None:
        self._engine = engine
        self._wakeups = wakeups
        self._catalog = catalog
        self._vitals = vitals
        self._renew = renew
        self._revision = newest_revision()
        self._older = older_revisions()
        self._stores: _Look[Report] = _Look(self._look_at_stores, lambda report: report.status == "ok")
        self._snapshot: _Look[Snapshot | None] = _Look(self._look_at_processes, lambda found: found is not None)

    async def stores(self) -> Report:
        """Postgres, its schema and Redis: what this process needs. Only a good report is remembered."""
        return await self._stores.get()

    async def snapshot(self) -> Snapshot | None:
        """The live processes and the backlog, at most a second old; None when Postgres is away."""
        return await self._snapshot.get()

    async def everything(self) -> Report:
        """The stores, the relay, the workers of each queue of the catalogue, and each LLM."""
        stores = await self.stores()
        parts = dict(stores.parts)
        snapshot = await self.snapshot()
        relays = sum(process["role"] == "relay" for process in snapshot.processes) if snapshot else 0
        parts["relay"] = {"status": "ok" if relays else "down", "processes": relays}
        for queue in self._catalog.queues:
            workers = [
                process
                for process in (snapshot.processes if snapshot else ())
                if process["role"] == "worker" and queue in process["queues"]
            ]
            capacity = sum(worker["capacity"] for worker in workers)
            part = {"status": "ok", "capacity": capacity} if capacity else self._unserved(queue, snapshot)
            parts[f"queue:{queue}"] = part
        return Report(parts | self._llms())

    def _unserved(self, queue: str, snapshot: Snapshot | None) -> Part:
        """A queue without workers, the pool that should bring them, and how many jobs wait for it."""
        pools = sorted({tier.pool for tier in self._catalog.tiers.values() if tier.queue == queue})
        rows = [row for row in (snapshot.backlog if snapshot else ()) if row["queue"] == queue]
        waiting = sum(row["waiting"] + row["published"] for row in rows)
        problem = f"no worker of the pool {' or '.join(pools)} serves it; its jobs wait"
        return {"status": "down", "capacity": 0, "waiting": waiting, "problem": problem}

    def _llms(self) -> dict[str, Part]:
        """Each LLM with its circuit breaker: ``down`` unless that is closed, and while its provider refuses this
        platform, with the reason; nothing when Redis does not say."""
        parts = {}
        for name, look in (self._vitals.breakers or {}).items():
            vitals = self._vitals.llms.get(name)
            refusal = vitals.refusal if vitals else None
            ok = look.state is CircuitState.CLOSED and refusal is None
            part: Part = {"status": "ok" if ok else "down", "breaker": look.state}
            parts[f"llm:{name}"] = part if refusal is None else part | {"problem": refusal}
        return parts

    async def _look_at_stores(self) -> Report:
        (postgres, migrations), redis = await asyncio.gather(self._postgres(), self._redis())
        return Report({"postgres": postgres, "redis": redis, "migrations": migrations})

    async def _look_at_processes(self) -> Snapshot | None:
        params = {"queues": list(self._catalog.queues), "most": MOST_COUNTED}
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return Snapshot(
                    await read_all(self._engine, SELECT_LIVE),
                    await read_all(self._engine, SELECT_BACKLOG, params),
                )
        except (SQLAlchemyError, OSError):
            return None

    async def _postgres(self) -> tuple[Part, Part]:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                row = await read_one(self._engine, SELECT_REVISION)
        except (SQLAlchemyError, OSError) as error:
            if "alembic_version" in str(error):
                return {"status": "ok"}, {"status": "down", "found": None, "expected": self._revision}
            return {"status": "down"}, {"status": "down", "found": None, "expected": self._revision}
        if row is None:
            return {"status": "ok"}, {"status": "down", "found": None, "expected": self._revision}
        if row["read_only"]:
            await self._renew()
        found = row["version_num"]
        migrations: Part = {"status": "ok", "found": found, "expected": self._revision}
        if found in self._older:
            migrations["status"] = "down"
        elif found != self._revision:
            migrations["newer"] = True
        return {"status": "read_only" if row["read_only"] else "ok"}, migrations

    async def _redis(self) -> Part:
        return {"status": "ok" if await self._wakeups.is_reachable() else "down"}
