"""What the platform costs with ten million finished jobs behind it, against an empty database on the same server.

    python -m benchmarks.scale [--finished 10000000] [--waiting 200000] [--tenants 1000] [--batches 1000]
                               [--samples 200] [--idle 30] [--keep DIRECTORY]

Loads the jobs with one attempt, one ledger entry and a share in the sums by day each, the first of them as rows of
batches, and jobs that wait in a queue whose window is full. Then it takes the times of each statement and of the
platform, first on the empty database and then on the loaded one, and the processor time of an idle relay. With
``--keep`` the data stay in that directory, and the next run with the same sizes does not load them again.
Bounds: each p95, warm, at most 1.5 x that of the empty database or 2 ms more; an idle relay under 5 % of one core.
"""

import asyncio
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any
from uuid import UUID

import httpx
import psycopg
from sqlalchemy.ext.asyncio import AsyncEngine

from api.health import MOST_COUNTED
from api.local.postgres import EmbeddedPostgres
from api.local.valkey import EmbeddedValkey
from benchmarks.ground import print_fsync, print_machine
from benchmarks.processor import seconds_of
from models.account import create_key
from models.attempt import RESCUE
from models.budget import FOLD
from models.catalog import load_catalog
from models.database import create_engine, fetch_all, migrate
from models.event import RAISE_ANOMALIES
from models.ids import BATCH, to_wire
from models.job import EXPIRE_JOBS
from models.lifecycle import JobStatus
from models.process import SELECT_BACKLOG
from models.wakeups import Wakeups
from tests.api.acting import Worker
from tests.stack import Stack, kill
from workers.publisher import Message, Publisher
from workers.relay import Relay
from workers.settings import RelaySettings

SERVED, CROWDED = "mock", "crowded"
CATALOG: dict[str, dict[str, object]] = {"echo": {}, "later": {"tier": CROWDED}}
TABLES = ("jobs", "attempts", "ledger_entries")
TENANT_ID = UUID("00000000-0000-4000-8000-000000000001")
WARM_UP = 20
SLICE = 500_000
YEAR_S = 365 * 86_400
MOST_RATIO, MOST_EXTRA_MS, MOST_IDLE_PERCENT = 1.5, 2.0, 5.0

_ID = (
    "CAST(lpad(to_hex(floor((extract(epoch FROM {at}) * 1000))::bigint), 12, '0') || '7{kind}8000'"
    " || lpad(to_hex(n), 12, '0') AS uuid)"
)
_AT = "now() - make_interval(secs => {year} * (1 - n / {finished}::float))"
_TENANT = "CAST('00000000-0000-4000-8000-' || lpad(to_hex(n %% {tenants} + 1), 12, '0') AS uuid)"
_BATCH = "CAST('00000000-0000-4000-9000-' || lpad(to_hex(n %% {tenants} + 1), 12, '0') AS uuid)"


@dataclass
class Measured:
    """The times of what was measured on one database, in milliseconds, by name."""

    times: dict[str, list[float]] = field(default_factory=dict)
    idle_percent: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, seconds: float) -> None:
        """Note one time."""
        self.times.setdefault(name, []).append(seconds * 1000)

    async def time(self, name: str, work: Callable[[], Awaitable[object]]) -> Any:  # Any: what the work returns
        """Do some work, and note its time."""
        started = time.perf_counter()
        result = await work()
        self.add(name, time.perf_counter() - started)
        return result

    def percentile(self, name: str, percent: int) -> float:
        """A percentile, without the first times."""
        warm = self.times[name][min(WARM_UP, len(self.times[name]) // 4) :]
        return quantiles(warm, n=100, method="inclusive")[percent - 1]


class Silent(Publisher):
    """A broker that takes every message and sends none."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def publish(self, queue: str, messages: Sequence[Message]) -> None:
        """Keep the ids."""
        self.sent += [job_id for message in messages for job_id in message.ids]

    def depth(self, queue: str) -> int:
        """None waits."""
        return 0


def connect(url: str) -> "psycopg.Connection[Any]":
    """A connection for loading."""
    connection = psycopg.connect(url.replace("+psycopg", ""), autocommit=True)
    for setting in ("synchronous_commit = off", "session_replication_role = replica", "maintenance_work_mem = '768MB'"):
        connection.execute(f"SET {setting}")
    return connection


def load(url: str, options: Namespace) -> None:
    """Load everything, with constraints and indexes taken away meanwhile."""
    started = time.perf_counter()
    sizes = {"finished": options.finished, "tenants": options.tenants, "year": YEAR_S}
    wanted = f"{options.finished} {options.waiting} {options.tenants} {options.batches}"
    with connect(url) as connection:
        (found,) = connection.execute("SELECT obj_description('jobs'::regclass)").fetchone() or (None,)
        if found == wanted:
            print("loaded by an earlier run", flush=True)
            return
        if found is not None or connection.execute("SELECT FROM jobs LIMIT 1").fetchone():
            raise SystemExit(f"the directory has other data than {wanted}: {found}; give another one")
        _load_tenants(connection, options)
        later = _take_away_indexes(connection)
        rows = [(first, min(first + SLICE, options.finished + 1)) for first in range(1, options.finished + 1, SLICE)]
        with ThreadPoolExecutor(2) as pool:
            statements = [(text.format(**_values(sizes)), span) for text in _FINISHED for span in rows]
            list(
                pool.map(
                    lambda work: _run(url, work[0] + f" FROM generate_series({work[1][0]}, {work[1][1] - 1}) n"),
                    statements,
                )
            )
        connection.execute(_WAITING.format(**_values(sizes | {"waiting": options.waiting})))
        print(f"rows inserted after {time.perf_counter() - started:.0f} s", flush=True)
        for group in later:
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda statement: _run(url, statement), group))
        _load_sums(connection)
        print(f"indexes and sums made after {time.perf_counter() - started:.0f} s", flush=True)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda table: _run(url, f"VACUUM (ANALYZE) {table}"), (*TABLES, "batches", "usage_days")))
        connection.execute(f"COMMENT ON TABLE jobs IS '{wanted}'")
    print(f"loaded in {time.perf_counter() - started:.0f} s: {describe(options)}", flush=True)


def describe(options: Namespace) -> str:
    """What is loaded."""
    return (
        f"{options.finished:,} finished jobs with an attempt and a ledger entry each, {options.waiting:,} that wait in"
        f" a crowded queue, {options.tenants:,} tenants, {options.batches:,} batches, half of them paused"
    )


def _values(sizes: dict[str, Any]) -> dict[str, Any]:
    at = _AT.format(**sizes)
    ids = {name: _ID.format(at=at, kind=kind) for name, kind in (("job", "000"), ("attempt", "001"))}
    waiting = _ID.format(at="now()", kind="002")
    plain = {"at": at, "tenant": _TENANT.format(**sizes), "batch": _BATCH.format(**sizes), "waiting_id": waiting}
    return {
        name: value.replace("%%", "%") if isinstance(value, str) else value
        for name, value in (sizes | ids | plain).items()
    }


_FINISHED = (
    """
    INSERT INTO jobs (id, tenant_id, status, priority, model, route, tier, queue, request, created_at, expires_at,
                      next_attempt_at, dispatched_at, started_at, finished_at, attempt_count, input_tokens,
                      output_tokens, cost_usd, result, error, batch_id, batch_row, batch_round)
    SELECT {job}, {tenant}, CASE WHEN n % 1009 = 0 THEN 'failed' ELSE 'completed' END, 1, 'echo', '{{echo}}', 'mock',
           'mock', '{{"messages": [{{"role": "user", "content": "a prompt of some length"}}], "max_tokens": 16}}',
           {at}, {at} + interval '1 day', {at}, {at}, {at}, {at}, 1, 12, 40, 0.000092,
           CASE WHEN n % 1009 <> 0 THEN CAST('{{"text": "an answer", "finish_reason": "stop"}}' AS jsonb) END,
           CASE WHEN n % 1009 = 0 THEN CAST('{{"code": "timeout", "message": "too late"}}' AS jsonb) END,
           CASE WHEN n <= {finished} / 10 THEN {batch} END, CASE WHEN n <= {finished} / 10 THEN n / {tenants} + 1 END,
           CASE WHEN n <= {finished} / 10 THEN 0 END""",
    """
    INSERT INTO attempts (id, job_id, number, llm, provider, worker_id, started_at, finished_at, outcome, duration_ms,
                          input_tokens, output_tokens, cost_usd)
    SELECT {attempt}, {job}, 1, 'echo', 'mock', '00000000-0000-4000-a000-000000000001', {at}, {at},
           CASE WHEN n % 1009 = 0 THEN 'failed' ELSE 'completed' END, 800, 12, 40, 0.000092""",
    """
    INSERT INTO ledger_entries (attempt_id, job_id, tenant_id, llm, team, input_tokens, output_tokens, input_price,
                                output_price, cost_usd, created_at)
    SELECT {attempt}, {job}, {tenant}, 'echo', 'team' || n % 3, 12, 40, 1, 2, 0.000092, {at}""",
)

_WAITING = """
    INSERT INTO jobs (id, tenant_id, status, priority, model, route, tier, queue, request, expires_at)
    SELECT {waiting_id}, {tenant}, 'queued', 1, 'later', '{{later}}', 'crowded', 'crowded',
           '{{"messages": [{{"role": "user", "content": "a prompt"}}], "max_tokens": 16}}', now() + interval '30 days'
    FROM generate_series(1, {waiting}) n"""


def _load_tenants(connection: "psycopg.Connection[Any]", options: Namespace) -> None:
    sizes = {"tenants": options.tenants}
    values = {"tenant": _TENANT.format(**sizes).replace("%%", "%"), "batch": _BATCH.format(**sizes).replace("%%", "%")}
    connection.execute(
        "INSERT INTO tenants (id, name) SELECT {tenant}, 'tenant ' || n FROM generate_series(0, {most}) n".format(
            **values, most=options.tenants - 1
        )
    )
    rows = options.finished // 10 // options.tenants
    connection.execute(
        f"INSERT INTO batches (id, tenant_id, status, pause_reason, endpoint, completion_window, total, next_row,"
        f" in_progress_at, expires_at) SELECT {values['batch']}, {values['tenant']},"
        f" CASE n % 2 WHEN 0 THEN 'completed' ELSE 'paused' END, CASE n % 2 WHEN 1 THEN 'requested' END,"
        f" '/v1/chat/completions', '24h', {rows} * (1 + n % 2), {rows + 1}, now(), now() + interval '30 days'"
        f" FROM generate_series(0, {options.batches - 1}) n WHERE n < {options.tenants}"
    )
    connection.execute(
        f"INSERT INTO batch_counts (batch_id, writer, completed) SELECT id, gen_random_uuid(), {rows} FROM batches"
    )


def _take_away_indexes(connection: "psycopg.Connection[Any]") -> list[list[str]]:
    """Drop constraints and indexes; the statements that make them again, those that need the others last."""
    indexes: list[str] = []
    keys: list[str] = []
    foreign: list[str] = []
    names = ", ".join(f"'{table}'::regclass" for table in TABLES)
    constraints = connection.execute(
        "SELECT conrelid::regclass::text, conname, contype::text, pg_get_constraintdef(oid) FROM pg_constraint"
        f" WHERE conrelid IN ({names}) AND contype IN ('p', 'u', 'f') ORDER BY contype"
    ).fetchall()
    for table, name, kind, definition in constraints:
        statement = f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}"
        (foreign if kind == "f" else keys).append(statement + (" NOT VALID" if kind == "f" else ""))
        connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
    for name, definition in connection.execute(
        f"SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid IN ({names})"
    ).fetchall():
        indexes.append(definition)
        connection.execute(f"DROP INDEX {name}")
    # A key that takes a table's exclusive lock would wait for the other connection's index: one table at a time.
    return [indexes, *([statement] for statement in keys), foreign[:1], foreign[1:2], foreign[2:]]


def _load_sums(connection: "psycopg.Connection[Any]") -> None:
    connection.execute(
        "INSERT INTO usage_days (tenant_id, day, llm, team, end_user, api_key_id, entries, attempts, input_tokens,"
        " output_tokens, cost_usd) SELECT tenant_id, CAST(created_at AT TIME ZONE 'UTC' AS date), llm, team, end_user,"
        " api_key_id, count(*), count(*), sum(input_tokens), sum(output_tokens), sum(cost_usd) FROM ledger_entries"
        " GROUP BY 1, 2, 3, 4, 5, 6"
    )
    connection.execute(
        "INSERT INTO spend_days SELECT tenant_id, day, sum(cost_usd) FROM usage_days GROUP BY tenant_id, day"
    )
    connection.execute(
        "UPDATE usage_progress SET rolled_until = (SELECT max(created_at) FROM ledger_entries) + interval '1 us'"
    )


def _run(url: str, statement: str) -> None:
    with connect(url) as connection:
        connection.execute(statement)


async def measure_statements(stack: Stack, url: str, samples: int, measured: Measured) -> None:
    """Take the times of HTTP requests and of the relay's and workers' statements, without other processes."""
    process, base = stack.api()
    async with _worker_and_relay(stack, url) as (engine, worker, relay):
        headers = {"authorization": f"Bearer {await create_key(engine, TENANT_ID, 'scale')}"}
        async with httpx.AsyncClient(base_url=base, headers=headers, timeout=60) as client:
            for number in range(samples):
                await _time_job(measured, client, relay, worker, number)
            for _ in range(samples // 2):
                await _time_duties(measured, engine, worker.id)
                await _time_reads(measured, client)
    kill(process)


@asynccontextmanager
async def _worker_and_relay(stack: Stack, url: str) -> AsyncIterator[tuple[AsyncEngine, Worker, Relay]]:
    """A worker and a relay in this process, whose steps are run one at a time."""
    redis_url = stack.settings["HEADRACE_REDIS_URL"]
    engine, wakeups = create_engine(url, name="scale", pool_size=3), Wakeups(redis_url)
    worker = Worker(engine, wakeups)
    await worker.register()
    catalog = load_catalog(Path(stack.settings["HEADRACE_CATALOG"]))
    relay = Relay(RelaySettings(database_url=url, redis_url=redis_url), catalog, Silent())
    yield engine, worker, relay
    await worker.deregister()
    await wakeups.close()
    for owned in (engine, relay._engine, relay._slow_engine, relay._dispatch_engine):
        await owned.dispose()


async def _time_job(measured: Measured, client: httpx.AsyncClient, relay: Relay, worker: Worker, number: int) -> None:
    """The life of one job, step by step."""
    dispatch = relay._singles.dispatch
    body = {"prompt": f"job {number}", "model": "echo", "max_tokens": 16}
    job = (await measured.time("submit", partial(client.post, "/v1/jobs", json=body))).json()
    await measured.time("dispatch", dispatch)
    claimed = await measured.time("claim", partial(worker.claim, job))
    await measured.time("finish", partial(worker.finish, claimed, llm="echo", queue=SERVED, tier="mock"))
    await measured.time("dispatch, nothing due", dispatch)


async def _time_duties(measured: Measured, engine: AsyncEngine, writer: UUID) -> None:
    """What a relay does at intervals, and what the metrics count."""
    params = {"limit": 500, "writer": writer, "max_deliveries": 5, "grace_s": 60.0, "error": "{}"}
    params |= {"max_deliveries_error": "{}", "expired_error": "{}", "free": []}
    backlog = {"queues": [SERVED, CROWDED], "most": MOST_COUNTED}
    await measured.time("expire", partial(fetch_all, engine, EXPIRE_JOBS, params))
    await measured.time("rescue", partial(fetch_all, engine, RESCUE, params))
    await measured.time("fold", partial(fetch_all, engine, FOLD))
    await measured.time("anomalies", partial(fetch_all, engine, RAISE_ANOMALIES))
    await measured.time("backlog of the metrics", partial(fetch_all, engine, SELECT_BACKLOG, backlog))


async def _time_reads(measured: Measured, client: httpx.AsyncClient) -> None:
    """What people ask the API for."""

    async def get(path: str, **params: str) -> None:
        assert (await client.get(path, params=params)).status_code == 200, path

    by_team = {"group_by": "team", "from": "2025-01-01"}
    await measured.time("usage of 30 days", partial(get, "/v1/usage", group_by="model"))
    await measured.time("usage of 2 years by team", partial(get, "/v1/usage", **by_team))
    await measured.time("list all", partial(get, "/v1/jobs"))
    for status in JobStatus:
        await measured.time(f"list {status}", partial(get, "/v1/jobs", status=status))
    batch = to_wire(BATCH, UUID("00000000-0000-4000-9000-000000000001"))
    await measured.time("list failed of a batch", partial(get, "/v1/jobs", batch_id=batch, status="failed"))


def measure_platform(stack: Stack, url: str, postgres_pid: int, options: Namespace, measured: Measured) -> None:
    """Take the times from submission to claim in an idle queue, and then what an idle relay costs."""
    api, base = stack.api()
    relay, worker = stack.relay(), stack.worker(SERVED)
    with connect(url) as connection:
        key = asyncio.run(_new_key(url))
        time.sleep(8)
        with httpx.Client(base_url=base, headers={"authorization": f"Bearer {key}"}, timeout=60) as client:
            for number in range(options.samples):
                sent = time.time()
                job = client.post("/v1/jobs", json={"prompt": f"job {number}", "max_tokens": 1, "model": "echo"}).json()
                done = client.get(f"{job['status_url']}?wait=20").json()
                claimed = datetime.fromisoformat(done["started_at"]).timestamp()
                measured.add("submit to claim", claimed - sent)
                time.sleep(0.02)
        for process in (worker, api):
            kill(process)
        connection.execute("DELETE FROM processes WHERE role = 'worker'")
        time.sleep(10)
        before, backends = seconds_of(relay.pid), seconds_of(postgres_pid)
        time.sleep(options.idle)
        measured.idle_percent = {
            "relay": (seconds_of(relay.pid) - before) / options.idle * 100,
            "Postgres for it": (seconds_of(postgres_pid) - backends) / options.idle * 100,
        }
    kill(relay)


async def _new_key(url: str) -> str:
    engine = create_engine(url, name="scale")
    try:
        return await create_key(engine, TENANT_ID, "scale")
    finally:
        await engine.dispose()


def report(empty: Measured, loaded: Measured) -> bool:
    """Print the table; whether every bound is kept."""
    good = True
    print(f"{'':<26}{'empty p50':>10}{'p95':>8}{'loaded p50':>12}{'p95':>8}   ms", flush=True)
    for name in loaded.times:
        before, after = (side.percentile(name, 95) for side in (empty, loaded))
        kept = after <= max(MOST_RATIO * before, before + MOST_EXTRA_MS)
        good = good and kept
        print(
            f"{name:<26}{empty.percentile(name, 50):>10.2f}{before:>8.2f}{loaded.percentile(name, 50):>12.2f}"
            f"{after:>8.2f}   {'' if kept else 'OVER THE BOUND'}"
        )
    for name, percent in loaded.idle_percent.items():
        kept = percent < MOST_IDLE_PERCENT
        good = good and kept
        mark = "" if kept else "   OVER THE BOUND"
        print(f"idle, {name}: {empty.idle_percent[name]:.1f} % of a core empty, {percent:.1f} % loaded (bound 5){mark}")
    return good


def run(directory: Path, options: Namespace) -> bool:
    """Load and measure in a directory."""
    postgres, valkey = EmbeddedPostgres(directory / "servers"), EmbeddedValkey(directory / "servers")
    try:
        url, redis_url = postgres.start(), valkey.start()
        print_machine()
        print_fsync(url)
        migrate(url)
        load(url, options)
        empty_url = f"{url.rsplit('/', 1)[0]}/empty"
        with connect(url) as connection:
            connection.execute("DROP DATABASE IF EXISTS empty WITH (FORCE)")
            connection.execute("CREATE DATABASE empty")
        migrate(empty_url)
        with connect(empty_url) as connection:
            _load_tenants(connection, Namespace(tenants=1, batches=1, finished=0))
        results = []
        for each in (empty_url, url):
            measured = Measured()
            with (
                tempfile.TemporaryDirectory(prefix="headrace-scale-") as logs,
                Stack(each, redis_url, Path(logs), HEADRACE_LEASE_S="30") as stack,
            ):
                stack.catalog(CATALOG)
                asyncio.run(measure_statements(stack, each, options.samples, measured))
                pid = postgres._recorded_pid()  # its children are the backends
                assert pid is not None
                measure_platform(stack, each, pid, options, measured)
            results.append(measured)
        return report(*results)
    finally:
        valkey.stop()
        postgres.stop()


def main() -> None:
    """Measure and print; ends with 1 when a bound is not kept."""
    parser = ArgumentParser(description=__doc__)
    for name, value in (("finished", 10_000_000), ("waiting", 200_000), ("tenants", 1000), ("batches", 1000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--idle", type=float, default=30)
    parser.add_argument("--keep", type=Path, help="a directory to keep the data in")
    options = parser.parse_args()
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        options.keep.chmod(0o711)  # for the servers' own account
        sys.exit(not run(options.keep.resolve(), options))
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as directory:
        Path(directory).chmod(0o711)
        good = run(Path(directory), options)
    sys.exit(not good)


if __name__ == "__main__":
    main()
