"""Whether the parts of the system are there, asked at most once a second."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal

from sqlalchemy import RowMapping
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from api.vitals import VitalSigns
from models.catalog import Catalog
from models.circuit import CircuitState
from models.database import SELECT_REVISION, newest_revision, read_all, read_one
from models.process import SELECT_BACKLOG, SELECT_LIVE
from models.wakeups import Wakeups

FRESH_S = 1.0
TIMEOUT_S = 3.0
MOST_COUNTED = 100_000
ESSENTIAL = ("postgres", "migrations")

State = Literal["ok", "degraded", "down"]
Part = dict[str, Any]  # Any: JSON


@dataclass(frozen=True, slots=True)
class Report:
    """The parts and what they add up to: ``down`` without an essential one, ``degraded`` without another."""

    parts: Mapping[str, Part]

    @property
    def status(self) -> State:
        missing = {name for name, part in self.parts.items() if part["status"] != "ok"}
        if missing & set(ESSENTIAL):
            return "down"
        return "degraded" if missing else "ok"

    def as_wire(self) -> dict[str, Any]:
        """``{"status", "parts": {name: {"status", ...}}}``."""
        return {"status": self.status, "parts": self.parts}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the metrics show of the system: live processes and each queue's unfinished jobs."""

    processes: Sequence[RowMapping]
    backlog: Sequence[RowMapping]


class Health:
    """Asks Postgres, Redis and the processes; what it found is good for a second."""

    def __init__(self, engine: AsyncEngine, wakeups: Wakeups, catalog: Catalog, vitals: VitalSigns) -> None:
        self._engine = engine
        self._wakeups = wakeups
        self._catalog = catalog
        self._vitals = vitals
        self._revision = newest_revision()
        self._stores: tuple[float, Report] | None = None
        self._snapshot: tuple[float, Snapshot] | None = None

    async def stores(self) -> Report:
        """Postgres, its schema and Redis: what this process needs. Only a good report is remembered."""
        if self._stores is not None and monotonic() < self._stores[0]:
            return self._stores[1]
        (postgres, migrations), redis = await asyncio.gather(self._postgres(), self._redis())
        report = Report({"postgres": postgres, "redis": redis, "migrations": migrations})
        self._stores = (monotonic() + FRESH_S, report) if report.status == "ok" else None
        return report

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
        """Each LLM with its circuit breaker: ``down`` unless that is closed; nothing when Redis does not say."""
        return {
            f"llm:{name}": {"status": "ok" if look.state is CircuitState.CLOSED else "down", "breaker": look.state}
            for name, look in (self._vitals.breakers or {}).items()
        }

    async def snapshot(self) -> Snapshot | None:
        """The live processes and the backlog, at most a second old; None when Postgres is away."""
        if self._snapshot is not None and monotonic() < self._snapshot[0]:
            return self._snapshot[1]
        params = {"queues": list(self._catalog.queues), "most": MOST_COUNTED}
        try:
            async with asyncio.timeout(TIMEOUT_S):
                snapshot = Snapshot(
                    await read_all(self._engine, SELECT_LIVE),
                    await read_all(self._engine, SELECT_BACKLOG, params),
                )
        except (SQLAlchemyError, OSError):
            return None
        self._snapshot = (monotonic() + FRESH_S, snapshot)
        return snapshot

    async def _postgres(self) -> tuple[Part, Part]:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                row = await read_one(self._engine, SELECT_REVISION)
        except (SQLAlchemyError, OSError) as error:
            if "alembic_version" in str(error):
                return {"status": "ok"}, {"status": "down", "found": None, "expected": self._revision}
            return {"status": "down"}, {"status": "down", "found": None, "expected": self._revision}
        found = row["version_num"] if row else None
        state = "ok" if found == self._revision else "down"
        return {"status": "ok"}, {"status": state, "found": found, "expected": self._revision}

    async def _redis(self) -> Part:
        return {"status": "ok" if await self._wakeups.is_reachable() else "down"}
