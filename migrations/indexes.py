"""Indexes on tables that are in use: made and dropped without blocking those who write."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

_STATE = sa.text("SELECT i.indisvalid FROM pg_index i WHERE i.indexrelid = to_regclass(:name)")


def create_index(name: str, table: str, columns: Sequence[str], *, where: str | None = None) -> None:
    """Create an index with ``CREATE INDEX CONCURRENTLY``.

    A run that was interrupted leaves an invalid index, which PostgreSQL maintains and never uses: it is dropped and
    made once more. A valid one is left as it is, so that the revision can be run again.
    """
    with op.get_context().autocommit_block():
        _wait_without_limit()
        valid = op.get_bind().execute(_STATE, {"name": name}).scalar_one_or_none()
        if valid is False:
            op.drop_index(name, table_name=table, postgresql_concurrently=True)
        if not valid:
            condition = None if where is None else sa.text(where)
            op.create_index(name, table, list(columns), postgresql_where=condition, postgresql_concurrently=True)
        _limit_again()


def drop_index(name: str, table: str) -> None:
    """Drop an index with ``DROP INDEX CONCURRENTLY``."""
    with op.get_context().autocommit_block():
        _wait_without_limit()
        op.drop_index(name, table_name=table, postgresql_concurrently=True, if_exists=True)
        _limit_again()


def _wait_without_limit() -> None:
    """Such statements wait for every older transaction, and nobody waits for them."""
    op.execute("SET lock_timeout = 0")
    op.execute("SET statement_timeout = 0")


def _limit_again() -> None:
    op.execute("SET lock_timeout = '10s'")
    op.execute("SET statement_timeout = '10min'")
