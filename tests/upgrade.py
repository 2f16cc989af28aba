"""A rolling upgrade: the processes of another revision under load, then its schema and its processes replaced.

The order is that of docs/upgrades.md: the schema, the API, the worker, the relay. What takes part is counted, and
everything that went wrong is kept, as text.
"""

import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx

from tests.revisions import environment, require_own_code
from tests.stack import ROOT, Database, Stack, wait_until

READS = ("/v1/jobs", "/v1/jobs?status=completed", "/v1/usage", "/v1/budgets", "/v1/models", "/v1/batches", "/v1/files")
_ENDED = ("completed", "failed", "cancelled", "expired")
_ROWS = 20
_PAUSE_S = 0.05


@dataclass
class Load:
    """Callers who submit, wait, read and upload against ``url``, which may change; what they saw."""

    url: str
    api_key: str
    requests: int = 0
    slowest_s: float = 0.0
    jobs: list[str] = field(default_factory=list)
    batches: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def running(self, callers: int) -> Iterator[None]:
        """Let so many callers work until the block ends."""
        threads = [threading.Thread(target=self._call, args=(number,), daemon=True) for number in range(callers)]
        threads.append(threading.Thread(target=self._upload_and_read, daemon=True))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def move_to(self, url: str) -> None:
        """Send every further request to another API, as a balancer does; requests on their way end where they are."""
        self.url = url

    def _call(self, number: int) -> None:
        """Submit a job and wait for it, again and again."""
        with self._client() as client:
            while not self._over.is_set():
                body = {"prompt": f"caller {number}, job {len(self.jobs)}", "model": "echo", "max_tokens": 16}
                accepted = self._ask(client, "POST", "/v1/jobs", 202, json=body)
                if accepted is None:
                    continue
                job = accepted.json()
                with self._lock:
                    self.jobs.append(job["id"])
                self._ask(client, "GET", f"{job['status_url']}?wait=10", 200)
                self._over.wait(_PAUSE_S)

    def _upload_and_read(self) -> None:
        """Upload a small batch and read everything that can be listed, again and again."""
        rows = "".join(f"{number},row {number}\n" for number in range(_ROWS))
        with self._client() as client:
            while not self._over.is_set():
                made = self._ask(
                    client,
                    "POST",
                    "/v1/batches/upload",
                    202,
                    data={"prompt": "{{text}}", "model": "echo", "max_tokens": "16"},
                    files={"file": ("rows.csv", io.BytesIO(f"id,text\n{rows}".encode()), "text/csv")},
                )
                if made is not None:
                    self.batches.append(made.json()["id"])
                for path in READS:
                    self._ask(client, "GET", path, 200)
                self._over.wait(0.3)

    def _client(self) -> httpx.Client:
        return httpx.Client(headers={"Authorization": f"Bearer {self.api_key}"}, timeout=60)

    def _ask(
        self, client: httpx.Client, method: str, path: str, expected: int, **body: object
    ) -> httpx.Response | None:
        """The response, or None where it is not what was expected, which is noted."""
        started = time.monotonic()
        try:
            response = client.request(method, f"{self.url}{path}", **body)  # type: ignore[arg-type]  # as httpx takes it
            problem = None if response.status_code == expected else f"{response.status_code} {response.text[:300]}"
        except httpx.HTTPError as error:
            problem = repr(error)
        with self._lock:
            self.requests += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - started)
            if problem is not None:
                self.problems.append(f"{method} {path}: {problem}")
        if problem is None:
            return response
        self._over.wait(0.2)
        return None


def upgrade(
    old_root: Path,
    urls: tuple[str, str],
    directory: Path,
    *,
    callers: int,
    each_s: float,
    said: Callable[[str, Load], None],
) -> Load:
    """Run the processes of ``old_root`` on an empty database under load, and replace schema, API, worker and relay by
    this checkout's, with load for ``each_s`` seconds in between. ``said`` is told each stage that has passed; a stage
    with problems is the last one."""
    require_own_code(old_root)
    database_url, redis_url = urls
    api_key = _provision(old_root, database_url, directory)
    with (
        Stack(database_url, redis_url, directory / "old") as old,
        Stack(database_url, redis_url, directory / "new") as new,
        Database(database_url) as database,
    ):
        old.root = old_root
        for stack in (old, new):
            stack.directory.mkdir()
            stack.catalog({"echo": {"mock": {"latency_s": 0.02}}})
        old_api, url = old.api()
        old_relay, old_worker = old.relay(), old.worker()
        load = Load(url, api_key)

        def replace_api() -> None:
            load.move_to(new.api()[1])
            time.sleep(0.5)
            _stop(old_api)

        def replace_worker() -> None:
            new.worker()
            wait_until(lambda: load.problems or _live(database, "worker") == 2)
            _stop(old_worker)

        def replace_relay() -> None:
            new.relay()
            wait_until(lambda: load.problems or _live(database, "relay") == 2)
            _stop(old_relay)

        steps: dict[str, Callable[[], None]] = {
            "old processes, old schema": lambda: None,
            "old processes, new schema": partial(_migrate, ROOT, database_url),
            "new API, old worker and relay": replace_api,
            "new API and worker, old relay": replace_worker,
            "new processes": replace_relay,
        }
        with load.running(callers):
            for stage, change in steps.items():
                change()
                _work(load, database, each_s)
                said(stage, load)
                if load.problems:
                    return load
        database.wait_until_finished()
        _look_at_results(load)
    return load


def _provision(root: Path, database_url: str, directory: Path) -> str:
    """Migrate with the code below ``root``, and make the tenant's key with it."""
    key_file = directory / "api_key"
    _run(root, database_url, "-m", "api.local.provision", str(key_file))
    return key_file.read_text().strip()


def _migrate(root: Path, database_url: str) -> None:
    _run(
        root,
        database_url,
        "-c",
        "import os; from models.database import migrate; migrate(os.environ['HEADRACE_DATABASE_URL'])",
    )


def _run(root: Path, database_url: str, *arguments: str) -> None:
    env = environment(root, HEADRACE_DATABASE_URL=database_url)
    done = subprocess.run([sys.executable, *arguments], cwd=root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def _work(load: Load, database: Database, seconds: float) -> None:
    """Let the load go on for some time, in which jobs must end."""
    started, before = time.monotonic(), database.count("completed")
    wait_until(lambda: database.count("completed") > before + 5 or load.problems, 30)
    time.sleep(max(0.0, seconds - (time.monotonic() - started)))


def _live(database: Database, role: str) -> int:
    return int(database.value("SELECT count(*) FROM processes WHERE role = %s AND lease_expires_at > now()", role))


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(60)


def _look_at_results(load: Load) -> None:
    """Note every job and batch that did not complete."""
    with httpx.Client(base_url=load.url, headers={"Authorization": f"Bearer {load.api_key}"}, timeout=60) as client:
        for job_id in load.jobs:
            job = client.get(f"/status/{job_id}").json()
            if job["status"] != "completed":
                load.problems.append(f"job {job_id}: {job['status']}: {job.get('error')}")
        for batch_id in load.batches:
            wait_until(partial(_has_ended, client, batch_id), 30)
            batch = client.get(f"/v1/batches/{batch_id}").json()
            if batch["request_counts"] != {"total": _ROWS, "completed": _ROWS, "failed": 0}:
                load.problems.append(f"batch {batch_id}: {batch['status']}: {batch['request_counts']}")


def _has_ended(client: httpx.Client, batch_id: str) -> bool:
    return client.get(f"/v1/batches/{batch_id}").json()["status"] in _ENDED
