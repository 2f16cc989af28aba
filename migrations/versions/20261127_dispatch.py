"""Indexes that hold what is published, what became due and what is unfinished of a batch, in the order of time."""

import sqlalchemy as sa
from alembic import op

revision = "20261127_dispatch"
down_revision = "20261127_reports"
branch_labels = None
depends_on = None

_WINDOW = "status IN ('queued', 'in_progress') AND dispatched_at IS NOT NULL"
_UNFINISHED_ROW = "batch_id IS NOT NULL AND status IN ('queued', 'in_progress')"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        _replace(
            "ix_jobs_newly_due",
            ["queue", "priority", "next_attempt_at"],
            "finished_at IS NULL AND dispatched_at IS NULL",
            include=["tenant_id", "status"],
        )
        _replace(
            "ix_jobs_published",
            ["queue", "dispatched_at"],
            "finished_at IS NULL AND dispatched_at IS NOT NULL",
            include=["tenant_id", "priority", "status"],
        )
        _replace("ix_jobs_batch_unfinished_id", ["batch_id", "id"], "batch_id IS NOT NULL AND finished_at IS NULL")
        # The statements of the revision before need neither: other indexes serve them, more slowly.
        _drop("ix_jobs_window")
        _drop("ix_jobs_batch_unfinished")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        _replace("ix_jobs_window", ["queue", "tenant_id"], _WINDOW)
        _replace("ix_jobs_batch_unfinished", ["batch_id"], _UNFINISHED_ROW)
        _drop("ix_jobs_batch_unfinished_id")
        _drop("ix_jobs_published")
        _drop("ix_jobs_newly_due")


def _replace(name: str, columns: list[str], where: str, include: list[str] | None = None) -> None:
    """Build an index; one that an interrupted migration left behind is not valid and is dropped first."""
    _drop(name)
    op.create_index(
        name,
        "jobs",
        columns,
        postgresql_concurrently=True,
        postgresql_where=sa.text(where),
        postgresql_include=include or [],
    )


def _drop(name: str) -> None:
    op.drop_index(name, table_name="jobs", postgresql_concurrently=True, if_exists=True)
