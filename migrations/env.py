"""Runs migrations under an advisory lock, with time-outs that keep them from stalling a live system."""

from alembic import context
from sqlalchemy import create_engine, pool, text

import models.account
import models.attempt
import models.batch
import models.budget
import models.event
import models.file
import models.job
import models.ledger
import models.process  # noqa: F401 - importing the tables registers them
from models.base import Base

ADVISORY_LOCK = 0x48454144  # "HEAD": one migration at a time, whichever host starts it


def run() -> None:
    """Migrate the database whose URL the caller put into the configuration."""
    engine = create_engine(context.config.attributes["url"], poolclass=pool.NullPool)
    with engine.connect() as connection:
        connection.execute(text("SET lock_timeout = '10s'"))
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
        connection.execute(text("SET statement_timeout = '10min'"))
        connection.commit()
        context.configure(connection=connection, target_metadata=Base.metadata, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
        connection.commit()
    engine.dispose()


if context.is_offline_mode():
    raise SystemExit("Headrace migrates a live database; there is no offline mode.")
run()
