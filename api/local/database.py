"""Errors of Postgres as sentences for the person who typed a command that uses it directly."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from api.local.by_hand import program
from api.local.errors import LocalError, SettingsError, Unanswered
from models.database import DatabaseFailure, classify
from models.errors import ConfigurationError
from models.session import refusal, why_never

_AWAY = frozenset({DatabaseFailure.AWAY, DatabaseFailure.BUSY, DatabaseFailure.CONFLICT, DatabaseFailure.TIMEOUT})
_ADVICE = {
    "42P01": "`{program} migrate` makes the tables",
    "42703": "`{program} migrate` brings the tables to the newest revision",
    "3F000": "create the schema, or grant the role the right to use it",
    "42501": "connect as the database's owner, or grant the role CREATE on the database and on its schema",
    "25006": "this server takes no writes; name the primary in HEADRACE_DATABASE_URL",
}
"""What to do about some refusals, by SQLSTATE."""


@contextmanager
def database_errors_as_sentences(url: str) -> Iterator[None]:
    """Raise a LocalError, which has an exit code, in place of ConfigurationError and SQLAlchemy's errors."""
    try:
        yield
    except ConfigurationError as error:
        raise SettingsError(str(error)) from None
    except DBAPIError as error:
        raise _sentence(error, url) from None
    except (SQLAlchemyError, OSError) as error:
        raise LocalError(f"the database cannot be used: {str(error).splitlines()[0]}") from None


def _sentence(error: DBAPIError, url: str) -> LocalError:
    said, sqlstate = refusal(error), getattr(error.orig, "sqlstate", None)
    if sqlstate is None and (never := why_never(error)) is not None:
        return SettingsError(never)
    if classify(error) in _AWAY:
        return Unanswered(f"no answer from Postgres at {_place(url)}: {said}")
    if sqlstate in _ADVICE:
        return SettingsError(f"Postgres refused: {said}; {_ADVICE[sqlstate].format(program=program())}")
    return LocalError(f"Postgres refused: {said}")


def _place(url: str) -> str:
    """Where Postgres is, without user and password."""
    parts = make_url(url)
    host = parts.host or parts.query.get("host") or "the local socket"
    return f"{host}:{parts.port}" if parts.port else str(host)
