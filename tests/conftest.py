"""Real servers for every test: one Postgres per test process, one database and one Valkey per test."""

import os
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest
import structlog

from api.local.postgres import EmbeddedPostgres
from api.local.valkey import EmbeddedValkey
from models.database import migrate
from tests.stack import Database, Stack, reachable_directory

_TEMPLATE = "migrated"

# As in workers: before the native library is loaded, so that engines of several test processes share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(autouse=True)
def logs_of_its_own() -> Iterator[None]:
    """A test that starts the app configures logging for its own captured output only."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A Postgres with a migrated template database, shared by the tests of one test process."""
    directory = reachable_directory()
    server = EmbeddedPostgres(directory, first_port=0)
    url = server.start()
    try:
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {_TEMPLATE}")
        migrate(_sibling(url, _TEMPLATE))
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def database_names() -> Iterator[str]:
    return (f"test_{number}" for number in count())


@pytest.fixture
def database_url(postgres: EmbeddedPostgres, database_names: Iterator[str]) -> Iterator[str]:
    """The URL of a fresh, migrated database."""
    name = next(database_names)
    admin = postgres.url.replace("+psycopg", "")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        yield _sibling(postgres.url, name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A fresh, migrated database to look into, with a tenant in it."""
    with Database(database_url) as opened:
        yield opened


@pytest.fixture
def valkey() -> Iterator[EmbeddedValkey]:
    """A running, empty Valkey."""
    directory = reachable_directory()
    server = EmbeddedValkey(directory, first_port=0)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(directory)


@pytest.fixture
def stack(database_url: str, valkey: EmbeddedValkey, tmp_path: Path) -> Iterator[Stack]:
    """A factory of real Headrace processes over the test's own servers; it ends what it started."""
    with Stack(database_url, valkey.url, tmp_path) as started:
        yield started


def _sibling(url: str, name: str) -> str:
    return f"{url.rsplit('/', 1)[0]}/{name}"
