"""How processes reach Postgres: engines, one-statement transactions, migrations.

Connections are in autocommit: each statement is a transaction of its own, which costs one round
trip. Work that must be atomic is one statement (see :mod:`models.attempt`), or opens a transaction
with :func:`transaction`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson
import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Executable, RowMapping, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from models.session import SESSION, connect_arguments, require_database
from models.telemetry import summarize

MIGRATIONS = Path(__file__).parent.parent / "migrations"
Params = Mapping[str, Any]  # Any: whatever psycopg can adapt
Read = Callable[[Executable, Params], Awaitable[Sequence[RowMapping]]]
"""Runs a statement that only reads, and may be run twice."""


class DatabaseFailure(StrEnum):
    """What an error of Postgres means for whoever ran the statement; :func:`classify` decides."""

    AWAY = "away"
    """Postgres cannot be reached, is starting or stopping, or the connection broke: wait, then run it again."""

    BUSY = "busy"
    """Every connection of this process's pool was in use for too long; Postgres itself may be well."""

    READ_ONLY = "read_only"
    """The server takes no writes, as after a failover: the connection is dropped; wait, then run it again."""

    CONFLICT = "conflict"
    """A serialisation failure, deadlock or lock time-out: the same statement may succeed at once."""

    TIMEOUT = "timeout"
    """The statement exceeded its time limit; it may be too expensive for as long as it is run."""

    FULL = "full"
    """The server is out of disk or memory: wait, then run it again."""

    REFUSED = "refused"
    """Postgres refuses this statement with these values, however often it is run."""


_READ_ONLY_SQLSTATE = "25006"
_CLASSES = {"08": DatabaseFailure.AWAY, "53": DatabaseFailure.FULL}
_SQLSTATES = {
    _READ_ONLY_SQLSTATE: DatabaseFailure.READ_ONLY,
    "25P03": DatabaseFailure.AWAY,  # idle_in_transaction_session_timeout ended the connection
    "40001": DatabaseFailure.CONFLICT,
    "40P01": DatabaseFailure.CONFLICT,
    "53300": DatabaseFailure.AWAY,  # too many connections
    "55P03": DatabaseFailure.CONFLICT,
    "57014": DatabaseFailure.TIMEOUT,
    "57P01": DatabaseFailure.AWAY,
    "57P02": DatabaseFailure.AWAY,
    "57P03": DatabaseFailure.AWAY,
    "57P05": DatabaseFailure.AWAY,
}
"""SQLSTATEs by PostgreSQL's table of error codes (appendix A of its manual), those of a class by its two digits."""

_UNSTORABLE = frozenset({"22003", "22021", "22026", "22032", "22P02", "22P05"})
"""SQLSTATEs of values that the column or the encoding cannot hold: out of range, bad characters, bad JSON."""

WAITING_HELPS = frozenset(
    {
        DatabaseFailure.AWAY,
        DatabaseFailure.BUSY,
        DatabaseFailure.READ_ONLY,
        DatabaseFailure.CONFLICT,
        DatabaseFailure.FULL,
    }
)
"""Failures after which the same statement, run again later, may succeed."""


NO_PARAMETERS: Mapping[str, str] = MappingProxyType({})

_CONNECTION: Mapping[str, int] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 15_000,
}
"""When a server counts as dead, in seconds and milliseconds; a URL may say otherwise."""


def create_engine(
    url: str,
    *,
    name: str,
    pool_size: int = 5,
    pool_timeout_s: float = 5,
    statement_timeout_s: float = 30,
    synchronous_commit: bool = True,
    parameters: Mapping[str, str] = NO_PARAMETERS,
) -> AsyncEngine:
    """An engine whose connections give up on a dead server within seconds, and that drops a connection whose server
    became read-only; ``name`` shows in ``pg_stat_activity``, and ``parameters`` are further ones of the session."""
    engine = create_async_engine(
        url,
        isolation_level="AUTOCOMMIT",
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=pool_timeout_s,
        hide_parameters=True,  # they are prompts and keys, and errors are logged
        json_serializer=dump_json,
        json_deserializer=orjson.loads,
        connect_args=connect_arguments(
            url,
            {
                **SESSION,
                "statement_timeout": f"{round(statement_timeout_s * 1000)}ms",
                "synchronous_commit": "on" if synchronous_commit else "off",
                **parameters,
            },
            {"application_name": f"headrace-{name}", **_CONNECTION},
        ),
    )
    event.listen(engine.sync_engine, "handle_error", _drop_read_only)
    return engine


def _drop_read_only(context: ExceptionContext) -> None:
    """Renew the pool after a failover: its connections may lead to the server that was demoted."""
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY_SQLSTATE:
        context.is_disconnect = True


class NotStorable(ValueError):
    """A value that JSON text cannot carry: an integer beyond 64 bits, a lone surrogate."""


def dump_json(value: object) -> str:
    """JSON text of a value; Decimals become strings, so that money keeps its digits. Raises NotStorable."""
    try:
        return orjson.dumps(value, default=str).decode()
    except orjson.JSONEncodeError as error:
        raise NotStorable(str(error)) from None


def is_unstorable(error: BaseException) -> bool:
    """Whether the error is that a value of the statement cannot be stored: U+0000, a number out of range, ...

    Such a value came from outside, past a check that should have refused it: whoever sent it is to be told.
    """
    if isinstance(error, NotStorable | UnicodeEncodeError):
        return True
    if not isinstance(error, DBAPIError) or not isinstance(error.orig, psycopg.DataError):
        return False
    sqlstate: str | None = error.orig.sqlstate
    return sqlstate is None or sqlstate in _UNSTORABLE


async def fetch_all(engine: AsyncEngine, statement: Executable, params: Params | None = None) -> Sequence[RowMapping]:
    """Run one statement as its own transaction and return its rows."""
    async with engine.connect() as connection:
        result = await connection.execute(statement, params)
        return result.mappings().all() if result.returns_rows else ()


async def fetch_one(engine: AsyncEngine, statement: Executable, params: Params | None = None) -> RowMapping | None:
    """Run one statement as its own transaction and return its first row, if any."""
    rows = await fetch_all(engine, statement, params)
    return rows[0] if rows else None


async def read_all(engine: AsyncEngine, statement: Executable, params: Params | None = None) -> Sequence[RowMapping]:
    """As :func:`fetch_all`, for statements that may run twice: a dead connection of the pool is not an error.

    After a restart of Postgres the pool's connections are dead and only their use tells; the pool is renewed
    by the first such error, so the second try has a fresh one.
    """
    try:
        return await fetch_all(engine, statement, params)
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        return await fetch_all(engine, statement, params)


async def read_one(engine: AsyncEngine, statement: Executable, params: Params | None = None) -> RowMapping | None:
    """As :func:`fetch_one`, for statements that may run twice."""
    rows = await read_all(engine, statement, params)
    return rows[0] if rows else None


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction of several statements, committed when the block ends without an error."""
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="READ COMMITTED")
        async with connection.begin():
            yield connection


def classify(error: BaseException) -> DatabaseFailure | None:
    """What an error means for whoever ran a statement; None for an error that is not Postgres's."""
    if isinstance(error, PoolTimeout):
        return DatabaseFailure.BUSY
    if isinstance(error, OSError):
        return DatabaseFailure.AWAY
    if not isinstance(error, DBAPIError):
        return None
    sqlstate: str | None = getattr(error.orig, "sqlstate", None)
    if sqlstate is not None:
        found = _SQLSTATES.get(sqlstate) or _CLASSES.get(sqlstate[:2])
        return found or DatabaseFailure.REFUSED
    # Without a SQLSTATE the server said nothing: the connection could not be made, or it broke.
    broken = error.connection_invalidated or isinstance(error.orig, psycopg.OperationalError)
    return DatabaseFailure.AWAY if broken else DatabaseFailure.REFUSED


def describe(error: BaseException) -> str:
    """One line about an error for a log: of Postgres's its SQLSTATE and message, never its details, which have pieces
    of rows."""
    return summarize(error).partition("\n")[0] or type(error).__name__


SELECT_REVISION = text(
    "SELECT version_num, current_setting('transaction_read_only') = 'on' AS read_only FROM alembic_version"
)
"""The revision that the schema has, and whether the server takes no writes, as a standby."""


def alembic_config(url: str) -> Config:
    """Alembic's configuration, in code, so that an installed Headrace can migrate from anywhere."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("file_template", "%%(year)d%%(month).2d%%(day).2d_%%(slug)s")
    config.attributes["url"] = url
    return config


def migrate(url: str) -> None:
    """Bring the schema to its newest version; concurrent callers wait for one another.

    Raises ConfigurationError when a pooler stands in between (the lock that they wait for is the session's), when the
    database's encoding or version cannot serve, or when Postgres refuses for good.
    """
    require_database(url)
    command.upgrade(alembic_config(url), "head")


def newest_revision() -> str | None:
    """The revision that this code expects of the schema."""
    return ScriptDirectory(str(MIGRATIONS)).get_current_head()


def older_revisions() -> frozenset[str]:
    """The revisions before the newest that this code knows. A revision that it does not know is a newer one: its
    schema still serves this code, by the rule of expanding before contracting."""
    script = ScriptDirectory(str(MIGRATIONS))
    return frozenset(revision.revision for revision in script.walk_revisions()) - {script.get_current_head()}
