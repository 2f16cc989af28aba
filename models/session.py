"""What every connection sets at its start, and the refusal of connections that do not keep it.

Time limits of statements, locks and idle transactions are parameters of the session, and so are two kinds of advisory
locks (migrations, the reading of an uploaded file). A pooler in transaction mode lends a session for one transaction:
it refuses these parameters or ignores them, and the locks end up with a stranger. So a process looks at its start.
"""

import re
from collections.abc import Mapping

from sqlalchemy import create_engine, pool, text
from sqlalchemy.exc import OperationalError

from models.errors import ConfigurationError

SESSION: Mapping[str, str] = {
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",
    "timezone": "UTC",
}
"""The parameters of every connection."""

_PROBE = "statement_timeout"
_CONNECT_TIMEOUT_S = 5

_REFUSED = re.compile("unsupported startup parameter|command-line options", re.IGNORECASE)
"""What PgBouncer and RDS Proxy answer to the start-up parameter ``options``."""

_WHAT_TO_DO = (
    "Headrace keeps pools of its own and needs direct connections: put the host and port of Postgres itself into"
    " HEADRACE_DATABASE_URL (docs/operations.md)"
)


def startup_options(parameters: Mapping[str, str] = SESSION) -> str:
    """libpq's ``options``, which set parameters when a connection starts, without a statement."""
    return " ".join(f"-c {name}={value}" for name, value in parameters.items())


def require_session(url: str) -> None:
    """Raise ConfigurationError when the connections to ``url`` do not keep their parameters, as through a pooler.

    Nothing is said where no connection can be made: Postgres may come, and the process waits for it.
    """
    arguments = {"connect_timeout": _CONNECT_TIMEOUT_S, "options": startup_options()}
    engine = create_engine(url, poolclass=pool.NullPool, connect_args=arguments)
    try:
        with engine.connect() as connection:
            found = connection.execute(text("SELECT current_setting(:name)"), {"name": _PROBE}).scalar_one()
    except OperationalError as error:
        said = str(error.orig).strip().splitlines()[-1].rpartition("FATAL:")[2].strip()
        if _REFUSED.search(said):
            raise ConfigurationError(
                f"a connection pooler refuses the session's time limits: {said}. {_WHAT_TO_DO}"
            ) from None
        return
    if found != SESSION[_PROBE]:
        problem = f"a connection pooler ignores the session's time limits: {_PROBE} is {found}, not {SESSION[_PROBE]}"
        raise ConfigurationError(f"{problem}. {_WHAT_TO_DO}")
