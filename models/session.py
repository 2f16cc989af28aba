"""What every connection to Postgres sets at its start, and the check that such connections can work.

Time limits of statements, locks and idle transactions are parameters of the session, and so are two kinds of advisory
locks (migrations, the reading of an uploaded file). A pooler in transaction mode lends a session for one transaction:
it refuses these parameters or ignores them, and another client gets the locks. So each process opens one connection at
its start and compares.
"""

import re
from collections.abc import Mapping

from sqlalchemy import RowMapping, create_engine, make_url, pool, text
from sqlalchemy.exc import ArgumentError, DBAPIError

from models.errors import ConfigurationError

SESSION: Mapping[str, str] = {
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",
    "timezone": "UTC",
}
"""The parameters of every connection."""

OLDEST_POSTGRES = 15
"""The oldest major version of Postgres that Headrace is tested on."""

_PROBE = "statement_timeout"
_SELECT_PROBE = text(
    "SELECT current_setting(:name) AS timeout, current_setting('server_encoding') AS encoding,"
    " CAST(current_setting('server_version_num') AS int) AS version, current_database() AS name"
)
_CONNECT_TIMEOUT_S = 5

_REFUSED = re.compile("unsupported startup parameter|command-line options", re.IGNORECASE)
"""What PgBouncer and RDS Proxy answer to the start-up parameter ``options``."""

_WHAT_TO_DO = (
    "Headrace keeps pools of its own and needs direct connections: put the host and port of Postgres itself into"
    " HEADRACE_DATABASE_URL (docs/operations.md)"
)

_NEVER_CONNECTS = (
    (r"no pg_hba\.conf entry.*no encryption", "add ?sslmode=require to HEADRACE_DATABASE_URL"),
    (
        r"authentication failed|no password supplied|no pg_hba\.conf entry|role .* (?:does not exist|is not permitted)",
        "correct the user and the password in HEADRACE_DATABASE_URL",
    ),
    (
        r"database .* does not exist|permission denied for database",
        "correct the name in HEADRACE_DATABASE_URL, or create the database with the encoding UTF8",
    ),
    (
        r"does not support SSL|certificate|private key file|channel binding required|sslmode value",
        "correct the parameters sslmode, sslrootcert, sslcert and sslkey in HEADRACE_DATABASE_URL",
    ),
)
"""Answers of Postgres and libpq, in English, after which no later try succeeds, and what to do about each. libpq does
not give the SQLSTATE of a refused connection."""


def connect_arguments(url: str, parameters: Mapping[str, str], defaults: Mapping[str, object]) -> dict[str, object]:
    """psycopg's arguments of a connection: the session's ``parameters`` and ``defaults``.

    A parameter of the URL replaces the default. The URL's ``options`` stay, in front of the session's parameters.
    """
    given = make_url(url).query
    own = given.get("options", ())
    options = " ".join((own,) if isinstance(own, str) else own)
    arguments = {name: value for name, value in defaults.items() if name not in given}
    return {**arguments, "options": f"{options} {startup_options(parameters)}".strip()}


def startup_options(parameters: Mapping[str, str] = SESSION) -> str:
    """libpq's ``options``, which set parameters when a connection starts, without a statement."""
    return " ".join(f"-c {name}={value}" for name, value in parameters.items())


def require_session(url: str) -> None:
    """Raise ConfigurationError when no connection to ``url`` can ever work: a pooler that does not keep the session's
    parameters, a wrong password, a database that does not exist.

    A Postgres that cannot be reached now raises nothing: the process waits for it.
    """
    try:
        _probe(url)
    except DBAPIError as error:
        problem = why_never(error)
        if problem is not None:
            raise ConfigurationError(problem) from None


def require_database(url: str) -> None:
    """As :func:`require_session`, and also when Headrace's tables cannot live there: an old Postgres, another encoding.

    Raises DBAPIError when no connection can be made now.
    """
    try:
        found = _probe(url)
    except DBAPIError as error:
        problem = why_never(error)
        if problem is None:
            raise
        raise ConfigurationError(problem) from None
    major = found["version"] // 10_000
    if major < OLDEST_POSTGRES:
        raise ConfigurationError(f"Postgres {major} is too old: Headrace needs {OLDEST_POSTGRES} or later")
    if found["encoding"] != "UTF8":
        raise ConfigurationError(
            f"the database {found['name']} has the encoding {found['encoding']}, which cannot hold every text: create"
            f" one with CREATE DATABASE {found['name']}_utf8 ENCODING 'UTF8' TEMPLATE template0"
        )


def why_never(error: DBAPIError) -> str | None:
    """One sentence when waiting cannot help and a person must change something; None when waiting may help."""
    said = refusal(error)
    if _REFUSED.search(said):
        return f"a connection pooler refuses the session's time limits: {said}. {_WHAT_TO_DO}"
    for pattern, advice in _NEVER_CONNECTS:
        if re.search(pattern, said, re.IGNORECASE):
            return f"Postgres cannot be used: {said}; {advice}"
    return None


def refusal(error: DBAPIError) -> str:
    """What the server or libpq said, in one line and without their prefixes."""
    primary = getattr(getattr(error.orig, "diag", None), "message_primary", None)
    if primary:
        return str(primary)
    lines = [line.strip() for line in str(error.orig).splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if not line.startswith(("Is the server", "- host"))), "")
    return re.sub(r"^.*(?:FATAL|ERROR): *|^connection (?:failed|is bad): *", "", last).strip()


def _probe(url: str) -> RowMapping:
    try:
        arguments = connect_arguments(url, SESSION, {"connect_timeout": _CONNECT_TIMEOUT_S, "client_encoding": "UTF8"})
        engine = create_engine(url, poolclass=pool.NullPool, connect_args=arguments)
    except ArgumentError as error:
        raise ConfigurationError(f"HEADRACE_DATABASE_URL: {error}") from None
    with engine.connect() as connection:
        found = connection.execute(_SELECT_PROBE, {"name": _PROBE}).mappings().one()
    if found["timeout"] != SESSION[_PROBE]:
        problem = f"a connection pooler ignores the session's time limits: {_PROBE} is {found['timeout']}"
        raise ConfigurationError(f"{problem}, not {SESSION[_PROBE]}. {_WHAT_TO_DO}")
    return found
