"""What an error of Postgres means."""

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from models.database import DatabaseFailure, classify, describe
from tests.stack import Database

ERRORS = {
    psycopg.errors.ConnectionFailure: DatabaseFailure.AWAY,
    psycopg.errors.AdminShutdown: DatabaseFailure.AWAY,
    psycopg.errors.CannotConnectNow: DatabaseFailure.AWAY,
    psycopg.errors.TooManyConnections: DatabaseFailure.AWAY,
    psycopg.errors.IdleInTransactionSessionTimeout: DatabaseFailure.AWAY,
    psycopg.errors.ReadOnlySqlTransaction: DatabaseFailure.READ_ONLY,
    psycopg.errors.SerializationFailure: DatabaseFailure.CONFLICT,
    psycopg.errors.DeadlockDetected: DatabaseFailure.CONFLICT,
    psycopg.errors.LockNotAvailable: DatabaseFailure.CONFLICT,
    psycopg.errors.QueryCanceled: DatabaseFailure.TIMEOUT,
    psycopg.errors.DiskFull: DatabaseFailure.FULL,
    psycopg.errors.OutOfMemory: DatabaseFailure.FULL,
    psycopg.errors.StatementTooComplex: DatabaseFailure.REFUSED,
    psycopg.errors.UntranslatableCharacter: DatabaseFailure.REFUSED,
    psycopg.errors.NumericValueOutOfRange: DatabaseFailure.REFUSED,
    psycopg.errors.NotNullViolation: DatabaseFailure.REFUSED,
}


@pytest.mark.parametrize(("error", "meaning"), ERRORS.items(), ids=lambda value: getattr(value, "__name__", str(value)))
def test_each_sqlstate_has_one_meaning(error: type[psycopg.Error], meaning: DatabaseFailure) -> None:
    """Also where the driver calls it an OperationalError, as it does time-outs and limits."""
    assert classify(DBAPIError("SELECT 1", None, error("it failed"))) is meaning


def test_an_error_without_a_sqlstate_is_a_broken_connection() -> None:
    """The server said nothing."""
    broken = DBAPIError("SELECT 1", None, psycopg.OperationalError("connection refused"))
    assert classify(broken) is DatabaseFailure.AWAY
    assert classify(ConnectionRefusedError()) is DatabaseFailure.AWAY


def test_a_full_pool_is_not_an_absent_server() -> None:
    """Postgres may be well when this process has no free connection."""
    assert classify(PoolTimeout("QueuePool limit")) is DatabaseFailure.BUSY


def test_an_error_of_the_program_is_none_of_postgres() -> None:
    """Nothing is retried for a mistake in the code."""
    assert classify(ValueError("not Postgres's")) is None


def test_a_log_line_about_an_error_has_no_piece_of_a_row(database: Database) -> None:
    """Postgres's details have; they come after its message."""
    with pytest.raises(psycopg.errors.NotNullViolation) as caught:
        database.rows("INSERT INTO tenants (id, name) VALUES (gen_random_uuid(), 'a secret'), (NULL, 'another')")
    assert "secret" in str(caught.value) or "another" in str(caught.value)
    line = describe(DBAPIError("INSERT", None, caught.value))
    assert line.startswith("23502 null value in column")
    assert "secret" not in line
    assert "another" not in line
    assert describe(ValueError("what\nmore")) == "what"
