"""Uploading a CSV as a batch, to the answer that its last row is recorded, against a bare COPY of the same rows.

    python -m benchmarks.batch_upload [--rows 100000] [--rounds 3]

Side by side in one run, on one Postgres with fsync: the upload over HTTP; psycopg's COPY, row by row, of the same rows
into a table with the columns and indexes of batch_rows; the same with the rows in COPY's own form beforehand, which is
as fast as Postgres takes them; and COPY of the CSV as it is into a table of its columns without an index. Meanwhile
another tenant reads the status of a job of its own, and the memory of the API and of its clerk is watched.

Bounds: 4 x the bare COPY; 300 MB for each process; p99 of /status below 100 ms, where it was read 500 times.
"""

import asyncio
import threading
import time
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from uuid import UUID

import httpx
import psycopg

from benchmarks.ground import Ground, common_ground, print_fsync, print_machine
from models.account import create_key, create_tenant
from models.database import create_engine

BOUND = 4.0
MEMORY_MB = 300
STATUS_MS = 100.0
ENOUGH = 500
PROMPT = "Classify the sentiment of this review: {{text}}"
TEXT = "the wheel turns, the mill grinds, and nothing of the grain is lost, said reviewer"
_BLOCK = 1 << 17
_COLUMNS = "batch_id, number, line, custom_id, route, cells, request, reserved_usd, digest"


def write_csv(path: Path, rows: int) -> None:
    """A file of about 110 bytes a row."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write("id,text,label\r\n")
        for number in range(rows):
            file.write(f'{number},"{TEXT} {number}",{number % 7}\r\n')


class Memory:
    """Watches the memory of a process and of its children, in MB."""

    def __init__(self, pid: int) -> None:
        self.samples: list[tuple[float, dict[str, float]]] = []
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def peak(self, name: str) -> float:
        """The most that a process of this name had."""
        return max((sample.get(name, 0.0) for _, sample in self.samples), default=0.0)

    def _watch(self) -> None:
        started = time.monotonic()
        while not self._over.wait(0.1):
            tasks = Path(f"/proc/{self._pid}/task").glob("*/children")
            children = [int(child) for task in tasks for child in task.read_text().split()]
            sizes = {"API": _memory_mb(self._pid)}
            sizes |= {f"clerk {number}": _memory_mb(child) for number, child in enumerate(children, 1)}
            self.samples.append((time.monotonic() - started, sizes))


def _memory_mb(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0.0)


class Reader:
    """Another tenant, who reads the status of a job again and again."""

    def __init__(self, url: str, key: str) -> None:
        self.seconds: list[float] = []
        self._client = httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30)
        self._path = self._client.post("/v1/jobs", json={"prompt": "Hi"}).raise_for_status().json()["status_url"]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read meanwhile, a hundred times a second."""
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._thread.join()

    def _read(self) -> None:
        while not self._over.wait(0.01):
            started = time.perf_counter()
            self._client.get(self._path).raise_for_status()
            self.seconds.append(time.perf_counter() - started)


def upload(url: str, key: str, path: Path) -> tuple[float, str]:
    """Seconds from the first byte of an upload to its answer, and the batch's id."""
    with path.open("rb") as file, httpx.Client(timeout=600) as client:
        headers = {"authorization": f"Bearer {key}"}
        client.get(f"{url}/livez")
        started = time.perf_counter()
        form = {"prompt": PROMPT, "id_column": "id"}
        response = client.post(f"{url}/v1/batches/upload", headers=headers, files={"file": file}, data=form)
        elapsed = time.perf_counter() - started
    assert response.status_code == 202, response.text
    return elapsed, response.json()["id"]


def rows_of(connection: psycopg.Connection[Any], batch_id: str) -> list[tuple[Any, ...]]:
    """The rows of a batch, as Python has them."""
    return connection.execute(f"SELECT {_COLUMNS} FROM batch_rows WHERE batch_id = %s", [batch_id]).fetchall()


def copy_rows(connection: psycopg.Connection[Any], statement: str, rows: list[tuple[Any, ...]]) -> None:
    """As one copies rows with psycopg."""
    with connection.cursor().copy(statement) as copy:
        for row in rows:
            copy.write_row(row)


def copy_file(connection: psycopg.Connection[Any], statement: str, path: Path) -> None:
    """A file as it is."""
    with path.open("rb") as file, connection.cursor().copy(statement) as copy:
        while block := file.read(_BLOCK):
            copy.write(block)


def timed(connection: psycopg.Connection[Any], table: str, work: Callable[[], None]) -> float:
    """Seconds of some work and its commit, into an empty table."""
    connection.execute(f"TRUNCATE {table}")
    connection.commit()
    started = time.perf_counter()
    work()
    connection.commit()
    return time.perf_counter() - started


def compare(ground: Ground, url: str, path: Path, rounds: int) -> dict[str, list[float]]:
    """Each way's seconds, round by round."""
    results: dict[str, list[float]] = defaultdict(list)
    with psycopg.connect(ground.database.url.replace("+psycopg", "")) as connection:
        connection.execute("CREATE TABLE bare_rows (LIKE batch_rows INCLUDING ALL)")
        connection.execute("CREATE TABLE bare_csv (id text, text text, label text)")
        for _ in range(rounds):
            seconds, batch_id = upload(url, ground.database.api_key, path)
            results["upload"].append(seconds)
            for name, table, work in bare_ways(connection, batch_id.removeprefix("batch_"), path):
                results[name].append(timed(connection, table, work))
            connection.execute("DELETE FROM batches")
            connection.execute("TRUNCATE batch_rows")
            connection.commit()
    return results


def bare_ways(
    connection: psycopg.Connection[Any], batch_id: str, path: Path
) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """The ways without Headrace to copy the same rows: their names, tables and what does it."""
    into = f"COPY bare_rows ({_COLUMNS}) FROM STDIN"
    rows = rows_of(connection, batch_id)
    yield "COPY row by row", "bare_rows", lambda: copy_rows(connection, into, rows)
    rows = []
    encoded = path.with_suffix(".copy")
    with encoded.open("wb") as file, connection.cursor() as cursor:
        query = f"COPY (SELECT {_COLUMNS} FROM batch_rows WHERE batch_id = '{UUID(batch_id)}') TO STDOUT"
        with cursor.copy(query) as copy:
            file.writelines(copy)
    yield "COPY encoded", "bare_rows", lambda: copy_file(connection, into, encoded)
    as_is = "COPY bare_csv FROM STDIN (FORMAT csv, HEADER)"
    yield "COPY of the CSV", "bare_csv", lambda: copy_file(connection, as_is, path)


def verdict(good: bool) -> str:
    """How a bound was met."""
    return "PASS" if good else "FAIL"


def main() -> None:
    """Measure and print."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with common_ground() as ground:
        print_machine()
        print_fsync(ground.database.url)
        ground.stack.catalog({"echo": {}})
        process, url = ground.stack.api()
        path = ground.stack.directory / "rows.csv"
        write_csv(path, options.rows)
        print(f"{options.rows:,} rows, {path.stat().st_size / 1e6:.0f} MB")
        reader = Reader(url, asyncio.run(_another_key(ground.database.url)))
        with Memory(process.pid) as memory:
            cold, _ = upload(url, ground.database.api_key, path)
            print(f"{'upload, cold':>16}: {cold:6.2f} s")
            ground.database.rows("TRUNCATE batch_rows")
            results = compare(ground, url, path, options.rounds)
            with reader.reading():
                beside, _ = upload(url, ground.database.api_key, path)
    _report(results, beside, memory, reader.seconds)


async def _another_key(database_url: str) -> str:
    engine = create_engine(database_url, name="benchmark")
    try:
        return await create_key(engine, await create_tenant(engine, "other"), "reader")
    finally:
        await engine.dispose()


def _report(results: dict[str, list[float]], beside: float, memory: Memory, statuses: list[float]) -> None:
    for name, seconds in results.items():
        print(f"{name:>16}: {median(seconds):6.2f} s ({min(seconds):.2f}-{max(seconds):.2f})")
    ours = results["upload"]
    for name in list(results)[1:]:
        ratios = [mine / theirs for mine, theirs in zip(ours, results[name], strict=True)]
        told = "" if name == "COPY of the CSV" else f" (bound {BOUND:g}): {verdict(median(ratios) < BOUND)}"
        print(f"upload / {name}: {median(ratios):.2f}, {min(ratios):.2f}-{max(ratios):.2f}{told}")
    for name in sorted({name for _, sample in memory.samples for name in sample}):
        peak = memory.peak(name)
        print(f"memory of {name}: at most {peak:.0f} MB (bound {MEMORY_MB}): {verdict(peak < MEMORY_MB)}")
    every = max(1, len(memory.samples) // 10)
    print(
        "over time, MB: "
        + "; ".join(
            f"{at:.1f} s " + "/".join(f"{size:.0f}" for size in sizes.values()) for at, sizes in memory.samples[::every]
        )
    )
    p50, p99 = median(statuses) * 1000, quantiles(statuses, n=100)[98] * 1000
    told = verdict(p99 < STATUS_MS) if len(statuses) >= ENOUGH else "too few to judge by; --rows 1000000 has more"
    print(
        f"/status of another tenant during an upload of {beside:.1f} s: {len(statuses)} reads, p50 {p50:.1f} ms,"
        f" p99 {p99:.1f} ms (bound {STATUS_MS:g}): {told}"
    )


if __name__ == "__main__":
    main()
