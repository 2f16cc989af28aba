"""A running Headrace with LLMs that answer at once, and a person at its command line."""

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from api.local.postgres import EmbeddedPostgres
from api.local.valkey import EmbeddedValkey
from models.database import migrate
from tests.stack import Database, Stack, reachable_directory

LLMS: dict[str, dict[str, Any]] = {  # Any: TOML values
    "echo": {},
    "slow": {"mock": {"latency_s": 0.4}},
    "stuck": {"mock": {"latency_s": 60}},
    "flaky": {"mock": {"error": "provider_rejected", "error_calls": 3}, "fallbacks": []},
}


PROGRAM = f"{sys.executable} -m api.cli"
"""How the tests start the command line, which is also what it tells people to type."""


@dataclass
class Running:
    """The stack that the tests of one process share; a test may kill its API and start it again."""

    stack: Stack
    database: Database
    api: subprocess.Popen[bytes]
    url: str

    def restart_api(self) -> None:
        """An API on the port of the one before."""
        self.api, _ = self.stack.api(int(self.url.rpartition(":")[2]))


@dataclass
class Person:
    """Someone in a directory of theirs, with a key."""

    directory: Path
    environment: dict[str, str]

    def argv(self, *arguments: str) -> list[str]:
        """A command as the console script would run it."""
        return [sys.executable, "-m", "api.cli", *arguments]

    def run(self, *arguments: str, stdin: str = "", expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; fails the test when it ends with another code than expected."""
        done = subprocess.run(
            self.argv(*arguments),
            env=self.environment,
            cwd=self.directory,
            input=stdin,
            capture_output=True,
            check=False,
            text=True,
            timeout=120,
        )
        assert done.returncode == expect, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    @contextmanager
    def start(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Start a command in a session of its own, as a terminal would; it is killed if it is still there."""
        with subprocess.Popen(
            self.argv(*arguments),
            env=self.environment,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def write(self, name: str, text: str) -> None:
        """A file in the directory."""
        (self.directory / name).write_text(text, encoding="utf-8", newline="")

    def sheet(self, name: str) -> list[dict[str, str]]:
        """The rows of a CSV file in the directory."""
        with (self.directory / name).open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def running(
    postgres: EmbeddedPostgres, database_names: Iterator[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A stack that the tests of the command line share."""
    name = next(database_names)
    with psycopg.connect(postgres.url.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    url, directory = f"{postgres.url.rsplit('/', 1)[0]}/{name}", reachable_directory()
    migrate(url)
    valkey = EmbeddedValkey(directory, first_port=0)
    try:
        with Database(url) as database, Stack(url, valkey.start(), tmp_path_factory.mktemp("stack")) as stack:
            stack.catalog(LLMS)
            catalog = stack.directory / "catalog.toml"
            catalog.write_text(f'default = "echo"\n{catalog.read_text()}')
            stack.relay()
            stack.worker()
            process, api_url = stack.api()
            yield Running(stack, database, process, api_url)
    finally:
        valkey.stop()
        shutil.rmtree(directory)


@pytest.fixture
def person(running: Running, tmp_path: Path) -> Person:
    """Someone whose environment names the API, a key, and a proxy that would lead nowhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    mine = {"HEADRACE_URL": running.url, "HEADRACE_API_KEY": running.database.api_key, "COLUMNS": "120"}
    nowhere = {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    return Person(tmp_path, kept | mine | nowhere)


def lines_of(cells: Sequence[str]) -> str:
    """A CSV with a column ``text``."""
    return "".join(f"{cell}\r\n" for cell in ("text", *cells))
