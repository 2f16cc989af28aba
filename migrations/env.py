"""Runs migrations one process at a time, with time-outs that keep them from stopping a live system.

The rule for every migration is expand, then contract:

- A release only adds: tables, indexes, and columns that are nullable or have a constant default. The processes of the
  release before go on working on the new schema, so the schema is migrated first and processes are replaced after it.
- What a release no longer uses is dropped or renamed by the release after it, when no old process is left.
- A new column and its indexes have separate revisions. ``ADD COLUMN`` takes the table's exclusive lock for an instant;
  in one transaction with ``CREATE INDEX`` it would keep the lock until the index is built.
- An index on a table that may have rows is made by :func:`migrations.indexes.create_index`, which does not block
  writes. A revision that uses it does nothing else.
- Rows are not rewritten in a migration; a process of the new release fills a new column in small steps.
"""

from time import sleep

from alembic import context
from sqlalchemy import Connection, create_engine, pool, text

import models.account
import models.attempt
import models.batch
import models.budget
import models.event
import models.file
import models.intake
import models.job
import models.ledger
import models.process
import models.usage  # noqa: F401 - importing the tables registers them
from models.base import Base

ADVISORY_LOCK = 0x48454144  # "HEAD": one migration at a time, whichever host starts it
POLL_S = 0.5


def run() -> None:
    """Migrate the database whose URL the caller put into the configuration."""
    engine = create_engine(context.config.attributes["url"], poolclass=pool.NullPool)
    with engine.connect() as connection:
        _wait_for_lock(connection)
        connection.execute(text("SET lock_timeout = '10s'"))
        connection.execute(text("SET statement_timeout = '10min'"))
        connection.commit()
        context.configure(connection=connection, target_metadata=Base.metadata, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
        connection.commit()
    engine.dispose()


def _wait_for_lock(connection: Connection) -> None:
    """Take the advisory lock, however long another process migrates.

    It asks again and again: a session that waits in ``pg_advisory_lock`` has an open snapshot, for which the other
    process's ``CREATE INDEX CONCURRENTLY`` waits, and PostgreSQL would end one of the two for a deadlock.
    """
    while True:
        taken = connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": ADVISORY_LOCK}).scalar_one()
        connection.commit()
        if taken:
            return
        sleep(POLL_S)


if context.is_offline_mode():
    raise SystemExit("Headrace migrates a live database; there is no offline mode.")
run()
