"""Logs: what an error of Postgres says of rows is in none of them."""

import logging
from collections.abc import Iterator

import psycopg
import pytest
import structlog
from pydantic import BaseModel, ValidationError
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from models.telemetry import configure_logging, format_error, summarize
from tests.stack import Database


class Price(BaseModel):
    """What is read from outside."""

    usd: int


SECRET = "a prompt that nobody else may read"
STATEMENTS = {
    "a row that breaks a constraint": (
        "INSERT INTO tenants (id, name, weight) VALUES (gen_random_uuid(), :secret, -1)",
        "23514",
    ),
    "a value of another type": ("SELECT CAST(CAST(:secret AS text) AS uuid)", "22P02"),
    "text that is not JSON": ("SELECT CAST(CAST(:secret AS text) AS jsonb)", "22P02"),
}


@pytest.fixture
def logs() -> Iterator[None]:
    """Logging as the processes have it, and afterwards as the tests do."""
    factory, configuration = logging.getLogRecordFactory(), structlog.get_config()
    yield
    logging.setLogRecordFactory(factory)
    structlog.configure(**configuration)


def failure(database: Database, name: str) -> tuple[DBAPIError, str]:
    """The error of a statement, as a process has it."""
    statement, state = STATEMENTS[name]
    engine = create_engine(database.url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection, pytest.raises(DBAPIError) as caught:
            connection.execute(text(statement), {"secret": SECRET})
    finally:
        engine.dispose()
    assert SECRET in str(caught.value)  # as it would be in a log
    return caught.value, state


@pytest.mark.parametrize("name", STATEMENTS)
@pytest.mark.parametrize("as_json", [False, True])
def test_no_log_has_a_piece_of_a_row(
    name: str,
    as_json: bool,
    database: Database,
    logs: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error, state = failure(database, name)
    monkeypatch.setenv("HEADRACE_LOG", "json" if as_json else "")
    configure_logging()
    library = logging.getLogger("some.library")
    handler = logging.StreamHandler()
    library.addHandler(handler)
    try:
        try:
            raise RuntimeError("while it was recorded") from error
        except RuntimeError:
            structlog.get_logger().exception("job.refused", job_id="17")
            library.exception("a task failed")
        structlog.get_logger().error("job.refused", exc_info=error)
    finally:
        library.removeHandler(handler)
    logged = capsys.readouterr().err
    assert SECRET not in logged
    assert logged.count(state) >= 3
    assert logged.count("while it was recorded") >= 2
    assert "job_id" in logged
    assert "test_telemetry.py" in logged  # where it arose


def test_other_errors_say_what_they_say() -> None:
    assert summarize(ValueError("seven is too many")) == "seven is too many"
    assert summarize(psycopg.OperationalError("connection refused")) == "connection refused"


def test_a_value_that_pydantic_refuses_is_named_and_not_shown() -> None:
    with pytest.raises(ValidationError) as caught:
        Price.model_validate({"usd": SECRET})
    assert SECRET in str(caught.value)
    assert summarize(caught.value) == "1 problem of Price: usd (int_parsing)"


def test_a_traceback_tells_of_every_error_of_a_group_and_ends() -> None:
    first, second = ValueError("one"), KeyError("two")
    first.__context__, second.__context__ = second, first
    told = format_error(ExceptionGroup("both", [first, second]))
    assert "ValueError: one" in told
    assert "KeyError: 'two'" in told
