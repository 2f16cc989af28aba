"""The common ground of the benchmarks: servers with fsync in a temporary directory, and a report's header."""

import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from os import cpu_count
from pathlib import Path
from statistics import median

import psycopg

from api.local.postgres import EmbeddedPostgres
from api.local.valkey import EmbeddedValkey
from models.database import migrate
from tests.stack import Database, Stack


@dataclass(frozen=True, slots=True)
class Ground:
    """Fresh servers with a migrated database and a way to start processes."""

    database: Database
    stack: Stack
    postgres: EmbeddedPostgres
    valkey: EmbeddedValkey

    def fresh_database(self, name: str) -> str:
        """The URL of another, empty database on the same server."""
        self.database.rows(f"CREATE DATABASE {name}")
        return f"{self.database.url.rsplit('/', 1)[0]}/{name}"


@contextmanager
def common_ground(**settings: str) -> Iterator[Ground]:
    """Start the servers and processes' settings for one benchmark, and stop everything after it."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as directory:
        Path(directory).chmod(0o711)  # for the servers' own account
        postgres, valkey = (
            EmbeddedPostgres(Path(directory) / "servers"),
            EmbeddedValkey(Path(directory) / "servers"),
        )
        try:
            url, redis_url = postgres.start(), valkey.start()
            migrate(url)
            settings = {"HEADRACE_LEASE_S": "30", **settings}
            with Database(url) as database, Stack(url, redis_url, Path(directory), **settings) as stack:
                yield Ground(database, stack, postgres, valkey)
        finally:
            valkey.stop()
            postgres.stop()


def print_machine() -> None:
    """What was measured where and when, and whether commits really reach the disk."""
    machine = f"{cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine}")


def print_fsync(database_url: str) -> None:
    """Print the server's durability settings."""
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        names = ("fsync", "synchronous_commit", "server_version")
        row = [connection.execute(f"SHOW {name}").fetchone() for name in names]
        print("Postgres: " + ", ".join(f"{name}={value[0]}" for name, value in zip(names, row, strict=True) if value))


def spread(values: list[float]) -> str:
    """A median with its extremes."""
    return f"{median(values):.0f} ({min(values):.0f}-{max(values):.0f})"
