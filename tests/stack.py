"""Real processes and a look into their database, for tests that cause faults."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import httpx
import psycopg
import redis
from psycopg.rows import dict_row

from api.local.ports import choose_port
from models.account import DEVELOPMENT_TENANT, ensure_development_tenant
from models.database import dump_json
from models.ids import new_id
from models.job import INSERT_JOBS
from models.wakeups import DUE

ROOT = Path(__file__).parent.parent
_MOCK_LLM: Mapping[str, Any] = {  # Any: TOML values
    "tier": "mock",
    "provider": "mock",
    "context_window": 4096,
    "input_price": "1",
    "output_price": "2",
}
Row = dict[str, Any]  # Any: whatever a column holds


def reachable_directory() -> Path:
    """A new temporary directory that the servers' own account can enter, unlike pytest's."""
    directory = Path(tempfile.mkdtemp(prefix="headrace-test-"))
    directory.chmod(0o711)
    return directory


def wait_until(condition: Callable[[], object], timeout_s: float = 60.0, interval_s: float = 0.05) -> None:
    """Wait for a condition; fails the test when it does not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {condition}"
        time.sleep(interval_s)


class Database:
    """A direct look into Postgres, and submissions without the API."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection: psycopg.Connection[Row] | None = None

    @cached_property
    def api_key(self) -> str:
        """A key of the development tenant, which is made."""
        return ensure_development_tenant(self.url, None)

    @cached_property
    def tenant_id(self) -> UUID:
        """The development tenant."""
        assert self.api_key
        return UUID(str(self.value("SELECT id FROM tenants WHERE name = %s", DEVELOPMENT_TENANT)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._connection is not None:
            self._connection.close()

    def rows(self, query: str, *params: object) -> list[Row]:
        """The rows of a query; connects again when Postgres was restarted."""
        try:
            return self._query(query, params)
        except psycopg.OperationalError:
            self._connection = None
            return self._query(query, params)

    def _query(self, query: str, params: tuple[object, ...] | Mapping[str, object]) -> list[Row]:
        if self._connection is None:
            self._connection = psycopg.connect(self.url.replace("+psycopg", ""), autocommit=True, row_factory=dict_row)
        cursor = self._connection.execute(query, params)
        return cursor.fetchall() if cursor.description else []

    def named_rows(self, query: str, params: Mapping[str, object]) -> list[Row]:
        """The rows of a query with named parameters."""
        return self._query(query, params)

    def one(self, query: str, *params: object) -> Row:
        """The only row of a query."""
        (row,) = self.rows(query, *params)
        return row

    def value(self, query: str, *params: object) -> Any:  # Any: whatever the column holds
        """The only value of a query."""
        (value,) = self.one(query, *params).values()
        return value

    def submit(self, prompts: Iterable[str], **columns: object) -> list[UUID]:
        """Record jobs as the API does, and return their ids."""
        base = {
            "tenant_id": self.tenant_id,
            "kind": "generation",
            "priority": 1,
            "model": "auto",
            "route": ["echo"],
            "tier": "mock",
            "queue": "mock",
            "labels": {},
            "expires_in": 3600,
        }
        rows = [
            base
            | {
                "id": new_id(),
                "request": {
                    "messages": [{"role": "user", "content": prompt}],
                    "max_tokens": 16,
                },
            }
            | columns
            for prompt in prompts
        ]
        for start in range(0, len(rows), 1000):
            statement = INSERT_JOBS.text.replace(":rows", "%s")
            self.rows(statement, dump_json(rows[start : start + 1000]))
        return [UUID(str(row["id"])) for row in rows]

    def count(self, status: str) -> int:
        """How many jobs are in a status."""
        return int(self.value("SELECT count(*) FROM jobs WHERE status = %s", status))

    def unfinished(self) -> int:
        """How many jobs are in no terminal state."""
        return int(self.value("SELECT count(*) FROM jobs WHERE status IN ('queued', 'in_progress')"))

    def wait_until_finished(self, timeout_s: float = 90.0) -> None:
        """Wait until every job is in a terminal state."""
        wait_until(lambda: self.unfinished() == 0, timeout_s)

    def assert_each_completed_once(self, jobs: int) -> None:
        """Promises 1 and 2: every job completed, by one attempt, with its own answer, settled once."""
        statuses = self.rows("SELECT status, error, count(*) FROM jobs GROUP BY 1, 2")
        assert [(row["status"], row["count"]) for row in statuses] == [("completed", jobs)], statuses
        wrong = self.rows(
            "SELECT id, request, result FROM jobs"
            " WHERE result ->> 'text' IS DISTINCT FROM request -> 'messages' -> -1 ->> 'content'"
        )
        assert wrong == []
        completions = (
            "SELECT job_id, count(*) FROM attempts WHERE outcome = 'completed' GROUP BY 1 HAVING count(*) <> 1"
        )
        assert self.rows(completions) == []
        assert self.value("SELECT count(*) FROM attempts WHERE outcome = 'completed'") == jobs
        assert self.value("SELECT count(*) FROM attempts WHERE outcome IS NULL") == 0
        drift = self.rows(
            "SELECT j.id FROM jobs j LEFT JOIN ledger_entries l ON l.job_id = j.id"
            " GROUP BY j.id HAVING j.cost_usd + coalesce(j.cost_rest_usd, 0) <> coalesce(sum(l.cost_usd), 0)"
        )
        assert drift == []
        settled = (
            "SELECT count(*) FROM ledger_entries l JOIN attempts a ON a.id = l.attempt_id WHERE outcome = 'completed'"
        )
        assert self.value(settled) == jobs


class Stack:
    """Starts Headrace's processes against given servers; ends every one of them on exit. ``root`` has their code."""

    root = ROOT

    def __init__(self, database_url: str, redis_url: str, directory: Path, **settings: str) -> None:
        self.directory = directory
        self.settings = {
            "HEADRACE_DATABASE_URL": database_url,
            "HEADRACE_REDIS_URL": redis_url,
            "HEADRACE_LEASE_S": "3",
            "HEADRACE_DRAIN_S": "1",
            **settings,
        }
        self._processes: list[subprocess.Popen[bytes]] = []

    def wake(self) -> None:
        """Tell the relay that jobs are due, as the API does when it has recorded some."""
        with redis.Redis.from_url(self.settings["HEADRACE_REDIS_URL"]) as client:
            client.publish(DUE, "")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            kill(process)
        if error is not None:
            for log in sorted(self.directory.glob("*.log")):
                print(f"--- {log.name}", log.read_text(errors="replace")[-3000:], sep="\n")

    def catalog(
        self,
        llms: Mapping[str, Mapping[str, Any]],
        **tables: Mapping[str, object],
    ) -> None:
        """Make the catalogue: mock LLMs by name with their behaviour; ``tier`` in one names another tier, ``pool``
        that tier's pool, and ``tables`` are others, such as ``breaker``."""
        lines = [line for name, table in tables.items() for line in (f"[{name}]", *_toml(table))]
        for tier, pool in sorted({(str(llm.get("tier", "mock")), llm.get("pool", "cpu")) for llm in llms.values()}):
            lines += [f"[tiers.{tier}]", f'queue = "{tier}"', f'pool = "{pool}"']
        for name, llm in llms.items():
            top = {**_MOCK_LLM} | {key: value for key, value in llm.items() if key not in ("mock", "pool")}
            lines += [f"[llms.{name}]", *_toml(top), f"[llms.{name}.mock]", *_toml(llm.get("mock", {}))]
        path = self.directory / "catalog.toml"
        path.write_text("\n".join(lines), encoding="utf-8")
        self.settings["HEADRACE_CATALOG"] = str(path)

    def relay(self) -> subprocess.Popen[bytes]:
        """Start a relay."""
        return self._spawn("relay", "-m", "workers.relay")

    def worker(self, queues: str = "mock", concurrency: int | None = 8) -> subprocess.Popen[bytes]:
        """Start a worker; it is ready some two seconds later. ``None`` leaves its concurrency to the catalogue."""
        name = f"worker{len(self._processes)}@test"
        return self._spawn(
            "worker",
            *(
                "-m",
                "celery",
                "-A",
                "workers.celery",
                "worker",
                "-P",
                "threads",
                "-n",
                name,
            ),
            *(
                "-Q",
                queues,
                *(() if concurrency is None else ("-c", str(concurrency))),
                "--without-gossip",
                "--without-mingle",
            ),
            *("--loglevel", "warning"),
        )

    def api(
        self, port: int | None = None, *, app: str = "api.app:create_app", factory: bool = True
    ) -> tuple[subprocess.Popen[bytes], str]:
        """Start an API and wait until it answers; its process and its base URL."""
        port = port or choose_port("127.0.0.1", [])
        process = self._spawn(
            "api",
            *("-m", "uvicorn", app, *(["--factory"] if factory else []), "--port", str(port)),
            *("--no-access-log", "--log-level", "warning"),
        )
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _answers(url, process))
        return process, url

    def _spawn(self, kind: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = self.directory / f"{kind}{len(self._processes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=os.environ | {"PYTHONPATH": str(self.root)} | self.settings,
                cwd=self.root,
                stdout=output,
                stderr=output,
            )
        self._processes.append(process)
        return process


def kill(process: subprocess.Popen[bytes]) -> None:
    """``kill -9`` a process that is still there."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
        process.send_signal(signal.SIGCONT)
        process.wait()


def _answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "the API did not start"
    try:
        return httpx.get(f"{url}/livez", timeout=2).is_success
    except httpx.HTTPError:
        return False


def _toml(table: Mapping[str, object]) -> list[str]:
    return [f"{key} = {dump_json(value)}" for key, value in table.items()]
