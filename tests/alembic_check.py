"""Fails when the tables in ``models/`` and the migrations differ: ``python -m tests.alembic_check``."""

import tempfile
from pathlib import Path

from alembic import command
from alembic.util import CommandError

from api.local.postgres import EmbeddedPostgres
from models.database import alembic_config, migrate


def main() -> None:
    """Migrate an empty database and compare."""
    with tempfile.TemporaryDirectory(prefix="headrace-check-") as directory:
        server = EmbeddedPostgres(Path(directory))
        try:
            url = server.start()
            migrate(url)
            command.check(alembic_config(url))
        except CommandError as error:
            raise SystemExit(f"tables and migrations differ: {error}") from error
        finally:
            server.stop()


if __name__ == "__main__":
    main()
