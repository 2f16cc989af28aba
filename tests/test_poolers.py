"""Through a connection pooler no process starts: each says so in one line, and what to do instead."""

from pathlib import Path

import pytest

from api.local.valkey import EmbeddedValkey
from models.errors import ConfigurationError
from models.session import require_session
from tests.poolers import ignoring, refusing
from tests.stack import Database
from tests.starts import PROCESSES, end_of

REFUSALS = {
    "PgBouncer to 1.19": "unsupported startup parameter: options",
    "PgBouncer from 1.20": "unsupported startup parameter in options: statement_timeout",
    "RDS Proxy": "Feature not supported: RDS Proxy currently doesn't support command-line options.",
}
COMMANDS = {
    "headrace migrate": ["-m", "api.cli", "migrate"],
    "headrace up": ["-m", "api.cli", "up", "--no-flower"],
}


@pytest.mark.parametrize("message", REFUSALS.values(), ids=REFUSALS)
def test_a_pooler_that_refuses_the_sessions_parameters_is_named(message: str) -> None:
    with refusing(message) as url, pytest.raises(ConfigurationError, match="direct connections") as caught:
        require_session(url)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_pooler_that_ignores_the_sessions_parameters_is_found_out(database: Database) -> None:
    with ignoring(database.url) as url, pytest.raises(ConfigurationError, match="statement_timeout is 0, not 30s"):
        require_session(url)


def test_postgres_itself_is_taken_and_so_is_one_that_is_not_there_yet(database: Database) -> None:
    require_session(database.url)
    with refusing("the database system is starting up") as url:
        require_session(url)
    require_session("postgresql+psycopg://headrace:secret@127.0.0.1:9/headrace")


@pytest.mark.parametrize("arguments", (COMMANDS | PROCESSES).values(), ids=COMMANDS | PROCESSES)
def test_every_process_ends_with_one_line(arguments: list[str], valkey: EmbeddedValkey, tmp_path: Path) -> None:
    with refusing(REFUSALS["PgBouncer to 1.19"]) as url:
        settings = {"HEADRACE_DATABASE_URL": url, "HEADRACE_REDIS_URL": valkey.url, "HEADRACE_DATA_DIR": str(tmp_path)}
        code, said = end_of(arguments, settings)
    assert code, said
    assert "needs direct connections" in said
    assert "HEADRACE_DATABASE_URL (docs/operations.md)" in said
