"""The numbers of compose, Procfile, image and documents are those of the code."""

import ast
import asyncio
import re
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from api.app import create_app
from api.batches.clerks import MAX_CLERKS
from api.batches.validators import PROCESSES
from api.local.postgres import SETTINGS
from api.local.stack import AFTER_DRAIN_S, DRAIN_S
from api.local.valkey import EmbeddedValkey
from api.settings import ApiSettings
from models.catalog import SHIPPED, load_catalog
from tests.stack import ROOT, Database, Stack, wait_until
from workers.runner import _REPORT_TIMEOUT_S
from workers.settings import WorkerSettings

COMPOSE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
PROCFILE = (ROOT / "Procfile").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
TOLD_TO_POSTGRES = (
    "max_connections",
    "jit",
    "autovacuum_naptime",
    "autovacuum_vacuum_scale_factor",
    "autovacuum_vacuum_cost_delay",
)
FOR_THE_REST = 10
"""Connections for superusers, migrations, keys, and people with psql."""


def block(name: str, text: str = COMPOSE, indent: int = 2) -> str:
    """The lines of a service, or with no indent of a template, with lines that are folded put into one."""
    start = re.search(rf"^{' ' * indent}{re.escape(name)}:.*\n", text, re.MULTILINE)
    assert start, name
    lines = text[start.end() :].splitlines()
    own = []
    for line in lines:
        if line.strip() and len(line) - len(line.lstrip()) <= indent:
            break
        own.append(line)
    return re.sub(r">-\n|\n(?=\s+-[a-zA-Z-])", " ", "\n".join(own))


def procfile() -> dict[str, str]:
    """The commands of the Procfile, by process."""
    lines = [line for line in PROCFILE.splitlines() if line and not line.startswith("#")]
    return dict(line.split(": ", 1) for line in lines)


def seconds(text: str) -> float:
    """A time of compose, or the default of one that can be set: ``40s``, ``${NAME:-40s}``."""
    found = re.search(r"stop_grace_period: (?:\$\{\w+:-)?(\d+)s", text)
    assert found, text
    return float(found[1])


def of_source(module: str) -> int:
    """The connections of the pools that a module makes."""
    total = 0
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "create_engine":
            total += next(ast.literal_eval(word.value) for word in node.keywords if word.arg == "pool_size")
    assert total, module
    return total


@pytest.fixture
def pool_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the pools that are made in the test."""
    sizes: list[int] = []

    def remember(*arguments: Any, **options: Any) -> AsyncEngine:  # Any: SQLAlchemy's own
        sizes.append(options["pool_size"] + options["max_overflow"])
        return create_async_engine(*arguments, **options)

    monkeypatch.setattr("models.database.create_async_engine", remember)
    return sizes


def connections_of_api(database_url: str, redis_url: str, pool_sizes: list[int]) -> int:
    """The most that an API process opens, with its helpers."""
    app = create_app(ApiSettings(database_url=database_url, redis_url=redis_url))

    async def start() -> None:
        async with app.router.lifespan_context(app):
            pass

    asyncio.run(start())
    helpers = PROCESSES * of_source("api/batches/validator.py") + MAX_CLERKS * of_source("api/batches/intake.py")
    return sum(pool_sizes) + helpers


@pytest.fixture
def connections(database_url: str, valkey: EmbeddedValkey, pool_sizes: list[int]) -> dict[str, int]:
    """The most connections of one process of each kind."""
    return {
        "an API process": connections_of_api(database_url, valkey.url, pool_sizes),
        "a relay": of_source("workers/relay.py"),
        "a worker": of_source("workers/runner.py"),
    }


def test_the_documents_tell_how_many_connections_a_process_opens(connections: dict[str, int]) -> None:
    told = {
        name: int(number) for name, number in re.findall(r"^\| (an? [A-Za-z ]+) \| (\d+) \|", OPERATIONS, re.MULTILINE)
    }
    assert told == connections


def test_max_connections_fits_what_the_documents_say(connections: dict[str, int]) -> None:
    """The documents' own example, computed again; compose starts less than that."""
    counts = {"an API process": 4, "a relay": 3, "a worker": 15}
    checks = counts["a relay"] + counts["a worker"]
    parts = " + ".join(f"{counts[name]} x {connections[name]}" for name in counts)
    total = sum(counts[name] * connections[name] for name in counts) + checks + FOR_THE_REST
    assert f"{parts} + {checks} health checks + {FOR_THE_REST} for the rest = {total}" in OPERATIONS
    assert total <= int(SETTINGS["max_connections"])


def test_every_pool_of_the_processes_is_counted() -> None:
    makers = {
        str(path.relative_to(ROOT))
        for folder in ("api", "workers", "models")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"\bcreate_engine\(\s*\w*\.?database_url", path.read_text(encoding="utf-8"))
    }
    assert makers == {
        "api/batches/intake.py",
        "api/batches/validator.py",
        "api/keys.py",
        "models/account.py",
        "workers/relay.py",
        "workers/runner.py",
    }


@pytest.mark.parametrize("command", [block("postgres"), procfile()["postgres"]], ids=["compose", "Procfile"])
def test_postgres_is_told_what_the_embedded_one_is(command: str) -> None:
    for name in TOLD_TO_POSTGRES:
        assert f"-c {name}={SETTINGS[name]}" in command
    assert set(re.findall(r"-c (\w+)=", command)) == set(TOLD_TO_POSTGRES)


def test_uploads_are_kept_on_a_volume_that_the_image_makes_writable() -> None:
    api = block("api")
    place = re.search(r"TMPDIR: (\S+)", api)
    assert place
    assert re.search(rf"- spool:{place[1]}$", api, re.MULTILINE)
    assert re.search(r"^  spool:", COMPOSE[COMPOSE.index("\nvolumes:") :], re.MULTILINE)
    assert f"install --directory --owner headrace --mode 0700 {place[1]}" in DOCKERFILE
    assert not place[1].startswith("/tmp")


def test_the_api_has_ended_before_it_is_killed() -> None:
    image = re.search(r'"--timeout-graceful-shutdown", "(\d+)"', DOCKERFILE)
    assert image
    assert f"--timeout-graceful-shutdown {image[1]}" in procfile()["api"]
    assert seconds(block("api")) >= int(image[1]) + 10


def test_a_worker_has_reported_before_it_is_killed() -> None:
    drain_s = WorkerSettings.model_fields["drain_s"].default
    template = block("x-worker", indent=0)
    assert f"HEADRACE_DRAIN_S: ${{HEADRACE_DRAIN_S:-{drain_s:g}}}" in template
    assert seconds(template) >= drain_s + 3 * _REPORT_TIMEOUT_S
    assert drain_s == DRAIN_S
    assert AFTER_DRAIN_S >= 2 * _REPORT_TIMEOUT_S


@pytest.mark.parametrize("pool", ["cpu", "remote", "gpu"])
def test_compose_and_procfile_leave_the_concurrency_to_the_catalogue(pool: str) -> None:
    for command in (block(pool), procfile()[pool]):
        assert f"-n {pool}@%h" in command
        assert not re.search(r"\s(-c|--concurrency)\b", command)


def test_a_worker_has_the_concurrency_of_the_catalogue(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {}}, **{"pools.cpu": {"concurrency": 11}})
    stack.worker(concurrency=None)
    wait_until(lambda: database.value("SELECT count(*) FROM processes") == 1)
    assert database.value("SELECT capacity FROM processes") == 11


def test_the_queues_of_compose_are_those_of_the_shipped_catalogue() -> None:
    catalog = load_catalog(SHIPPED)
    assert f"-Q ${{HEADRACE_CPU_QUEUES:-{','.join(catalog.queues_of_pool('cpu'))}}}" in block("cpu")
    assert procfile()["cpu"].count("${HEADRACE_CPU_QUEUES:-small}") == 1
