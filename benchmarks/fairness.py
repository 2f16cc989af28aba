"""Whether tenants rotate, and what a choice costs when many wait.

    python -m benchmarks.fairness [--tenants 1000] [--quick]

A real dispatcher on a real Postgres, with a worker and a broker that take no time: they claim and end what is
published.

- ``many``: 1,000 tenants wait, for one worker of 200 places. Prints the time of a look at the windows, of the statement
  that chooses and marks as many jobs as become free at a time, and of one that fills the whole window. Bounds: 10 ms
  for the look and the choice at the median; each tenant is served within a factor of 2 of another.
- ``newcomer``: 40 tenants with 300 jobs each, for a window of 8; a newcomer whose jobs are younger, and one whose jobs
  are older while the others' are ``high``; single jobs, and rows of batches. Bound: served within two rounds.
"""

import asyncio
import sys
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks.ground import common_ground, print_fsync, print_machine
from models.database import create_engine, fetch_all
from tests.stack import Database
from workers.dispatcher import Dispatcher
from workers.publisher import Message
from workers.settings import RelaySettings
from workers.windows import Windows

QUEUE = "mock"
PLACES = 200
BOUND_MS = 10.0
_AT_A_TIME = 20
_WORKER = UUID(int=1)
_ROUNDS = 6
_FEW, _FEW_JOBS, _WINDOW = 40, 300, 8

_END = text("""
    WITH claimed AS (
        SELECT id FROM jobs WHERE id = ANY(CAST(:ids AS uuid[]))
    )
    UPDATE jobs SET status = :status, worker_id = CASE :status WHEN 'in_progress' THEN CAST(:worker AS uuid) END,
           finished_at = CASE :status WHEN 'completed' THEN now() END
    FROM claimed WHERE jobs.id = claimed.id
    RETURNING jobs.tenant_id
""")


def verdict(passed: bool) -> str:
    return "PASS" if passed else "FAIL"


@dataclass(slots=True)
class Broker:
    """Takes messages and keeps their ids."""

    ids: list[UUID] = field(default_factory=list)

    def publish(self, queue: str, messages: Sequence[Message]) -> None:
        self.ids += [UUID(job_id) for message in messages for job_id in message.ids]


class Platform:
    """A dispatcher of single jobs or of rows, and a worker that runs the published jobs in their order."""

    def __init__(self, engine: AsyncEngine, database: Database, *, rows: bool) -> None:
        self._engine = engine
        self._broker = Broker()
        self._windows = Windows(engine, [QUEUE])
        settings = RelaySettings(database_url=database.url, redis_url="redis://unused")
        self._dispatcher = Dispatcher(
            engine,
            self._broker,  # type: ignore[arg-type] # a fake
            settings,
            self._windows,
            rows=rows,
        )
        self.look_ms: list[float] = []
        self.fill_ms: list[float] = []

    def forget(self) -> None:
        """Look for all jobs that wait, as a relay does that starts."""
        self._windows.forget([QUEUE])

    async def step(self, places: int, ending: int) -> Counter[UUID]:
        """Fill the window up to ``places``, then end the oldest ``ending`` jobs; whose they were."""
        started = time.perf_counter()
        (window,) = await self._windows.look()
        looked = time.perf_counter()
        room = places - window.filled
        if room > 0:
            await self._dispatcher.fill(window, room)
        self.look_ms.append((looked - started) * 1000)
        self.fill_ms.append((time.perf_counter() - looked) * 1000)
        ended, self._broker.ids = self._broker.ids[:ending], self._broker.ids[ending:]
        params = {"ids": ended, "worker": _WORKER}
        await fetch_all(self._engine, _END, params | {"status": "in_progress"})
        rows = await fetch_all(self._engine, _END, params | {"status": "completed"})
        return Counter(row["tenant_id"] for row in rows)


def submit(database: Database, tenants: Sequence[UUID], jobs: int, priority: int, age_s: float) -> None:
    """Due jobs of each tenant, written by the server."""
    database.rows(
        "INSERT INTO jobs (id, tenant_id, priority, model, route, tier, queue, request, expires_at, next_attempt_at)"
        " SELECT uuidv7(), t, %s, 'echo', '{echo}', 'mock', %s, '{}', now() + interval '1 day',"
        " now() - make_interval(secs => %s) FROM generate_series(1, %s) CROSS JOIN unnest(CAST(%s AS uuid[])) t",
        priority,
        QUEUE,
        age_s,
        jobs,
        list(tenants),
    )


def new_tenants(database: Database, name: str, number: int) -> list[UUID]:
    rows = database.rows(
        "INSERT INTO tenants (id, name) SELECT uuidv7(), %s || n FROM generate_series(1, %s) n RETURNING id",
        name,
        number,
    )
    return [row["id"] for row in rows]


async def many(engine: AsyncEngine, database: Database, tenants: int) -> bool:
    """Print what a look and a choice cost, and how evenly tenants were served."""
    submit(database, new_tenants(database, "many", tenants), _ROUNDS * 4, 1, 60.0)
    platform = Platform(engine, database, rows=False)
    served: Counter[UUID] = Counter()
    served += await platform.step(2 * PLACES, _AT_A_TIME)
    whole_look, whole_window = platform.look_ms.pop(), platform.fill_ms.pop()
    while served.total() < _ROUNDS * tenants:
        served += await platform.step(2 * PLACES, _AT_A_TIME)
    look, choice = median(platform.look_ms), median(platform.fill_ms)
    p95 = quantiles(platform.fill_ms, n=20)[18]
    fewest, most = min(served.values()), max(served.values())
    print(f"{tenants} tenants wait, {PLACES} places: the first look {whole_look:.1f} ms, later ones {look:.1f} ms")
    print(
        f"choosing and marking {_AT_A_TIME} jobs: p50 {choice:.1f} ms, p95 {p95:.1f} ms (bound {BOUND_MS:g});"
        f" a whole window of {2 * PLACES}: {whole_window:.1f} ms: {verdict(look + choice < BOUND_MS)}"
    )
    even = len(served) == tenants and most <= 2 * fewest
    print(f"jobs of {len(served)} tenants ran, {fewest} to {most} of each (bound: a factor of 2): {verdict(even)}")
    return even and look + choice < BOUND_MS


async def newcomer(engine: AsyncEngine, database: Database, *, rows: bool, others: int, own: int, age_s: float) -> bool:
    """Print after how many of the others' jobs a newcomer's first was served."""
    database.rows("UPDATE jobs SET status = 'cancelled', finished_at = now() WHERE finished_at IS NULL")
    lowest = 3 if rows else 0
    name = f"n{time.monotonic_ns()}-"
    submit(database, new_tenants(database, name, _FEW), _FEW_JOBS, lowest + others, 60.0)
    platform = Platform(engine, database, rows=rows)
    served: Counter[UUID] = Counter()
    while served.total() < 3 * _FEW:
        served += await platform.step(_WINDOW, _WINDOW // 2)
    (tenant,) = new_tenants(database, f"{name}new-", 1)
    submit(database, [tenant], 3, lowest + own, age_s)
    platform.forget()  # jobs of that age are not newly due
    after: Counter[UUID] = Counter()
    while not after[tenant] and after.total() < 10 * _FEW:
        after += await platform.step(_WINDOW, _WINDOW // 2)
    waited = after.total() / _FEW
    passed = after[tenant] > 0 and waited <= 2
    kind, levels = "rows of batches" if rows else "single jobs", ("high", "normal", "low")
    print(
        f"{kind}, {_FEW} tenants' are {levels[others]}, a newcomer's {levels[own]} and {age_s:g} s old: served within"
        f" {waited:.1f} rounds (bound 2): {verdict(passed)}"
    )
    return passed


async def measure(url: str, database: Database, tenants: int) -> bool:
    engine = create_engine(url, name="benchmark", synchronous_commit=False)
    passed = []
    for rows in (False, True):
        for others, own, age_s in ((1, 1, 0.0), (0, 2, 3600.0)):
            passed.append(await newcomer(engine, database, rows=rows, others=others, own=own, age_s=age_s))
    passed.append(await many(engine, database, tenants))
    await engine.dispose()
    return all(passed)


def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="with 200 tenants")
    arguments = parser.parse_args()
    print_machine()
    with common_ground() as ground:
        print_fsync(ground.database.url)
        tenants = 200 if arguments.quick else arguments.tenants
        passed = asyncio.run(measure(ground.database.url, ground.database, tenants))
    sys.exit(not passed)


if __name__ == "__main__":
    main()
