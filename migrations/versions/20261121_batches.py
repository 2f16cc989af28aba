"""Batches with their rows and counts, files, and what a job knows of its batch."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "20261121_0006"
down_revision = "20261121_0005"
branch_labels = None
depends_on = None

_USD = sa.Numeric(precision=18, scale=6)
_TEXTS = postgresql.ARRAY(sa.Text())
_JSONB = postgresql.JSONB(astext_type=sa.Text())
_TIME = sa.DateTime(timezone=True)
_STATUSES = (
    "'validating', 'failed', 'in_progress', 'paused', 'finalizing', 'cancelling', 'completed', 'expired', 'cancelled'"
)


def upgrade() -> None:
    _create_batches()
    _create_rows_and_counts()
    _create_files()
    for name, kind in (
        ("batch_id", sa.Uuid()),
        ("batch_row", sa.Integer()),
        ("batch_round", sa.SmallInteger()),
        ("batch_copies", sa.Integer()),
    ):
        op.add_column("jobs", sa.Column(name, kind, nullable=True))
    _index_jobs()


def _create_batches() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("api_key_id", sa.Uuid(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("routes", _JSONB, server_default="[]", nullable=False),
        sa.Column("request", _JSONB, server_default="{}", nullable=False),
        sa.Column("columns", _TEXTS, nullable=True),
        sa.Column("template", _JSONB, nullable=True),
        sa.Column("dedupe", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("priority", sa.SmallInteger(), server_default="1", nullable=False),
        sa.Column("max_parallel", sa.Integer(), nullable=True),
        sa.Column("completion_window", sa.Text(), nullable=False),
        sa.Column("callback_url", sa.Text(), nullable=True),
        sa.Column("end_user", sa.Text(), nullable=True),
        sa.Column("team", sa.Text(), nullable=True),
        sa.Column("labels", _JSONB, server_default="{}", nullable=False),
        sa.Column("total", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_row", sa.Integer(), server_default="1", nullable=False),
        sa.Column("round", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("last_round", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("endings", _TEXTS, server_default="{}", nullable=False),
        sa.Column("reserved_usd", _USD, server_default="0", nullable=False),
        sa.Column("budget_periods", postgresql.ARRAY(sa.BigInteger()), server_default="{}", nullable=False),
        sa.Column("pause_reason", sa.Text(), nullable=True),
        sa.Column("errors", _JSONB, nullable=True),
        sa.Column("input_file_id", sa.Uuid(), nullable=True),
        sa.Column("output_file_id", sa.Uuid(), nullable=True),
        sa.Column("error_file_id", sa.Uuid(), nullable=True),
        sa.Column("output_expires_s", sa.Integer(), nullable=True),
        sa.Column("created_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("in_progress_at", _TIME, nullable=True),
        sa.Column("paused_at", _TIME, nullable=True),
        sa.Column("finalizing_at", _TIME, nullable=True),
        sa.Column("cancelling_at", _TIME, nullable=True),
        sa.Column("completed_at", _TIME, nullable=True),
        sa.Column("failed_at", _TIME, nullable=True),
        sa.Column("expired_at", _TIME, nullable=True),
        sa.Column("cancelled_at", _TIME, nullable=True),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.CheckConstraint(f"status IN ({_STATUSES})", name=op.f("ck_batches_status_known")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_batches_tenant_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
    )
    op.create_index(op.f("ix_batches_tenant_id_id"), "batches", ["tenant_id", "id"])
    op.create_index("ix_batches_fed", "batches", ["id"], postgresql_where=sa.text("status = 'in_progress'"))
    live = "status NOT IN ('completed', 'expired', 'cancelled', 'failed')"
    op.create_index("ix_batches_live", "batches", ["id"], postgresql_where=sa.text(live))


def _create_rows_and_counts() -> None:
    op.create_table(
        "batch_rows",
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("line", sa.Integer(), nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=True),
        sa.Column("route", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("cells", _TEXTS, nullable=True),
        sa.Column("request", _JSONB, nullable=True),
        sa.Column("reserved_usd", _USD, server_default="0", nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=True),
        sa.Column("same_as", sa.Integer(), nullable=True),
        sa.Column("round", sa.SmallInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("batch_id", "number", name=op.f("pk_batch_rows")),
    )
    again = sa.text("round > 0")
    op.create_index("ix_batch_rows_again", "batch_rows", ["batch_id", "round", "number"], postgresql_where=again)
    same = sa.text("same_as IS NOT NULL")
    op.create_index("ix_batch_rows_same", "batch_rows", ["batch_id", "same_as"], postgresql_where=same)
    counts = [
        sa.Column(name, kind, server_default="0", nullable=False)
        for kind, names in (
            (sa.Integer(), ("completed", "failed", "cancelled", "expired", "unpaid")),
            (sa.BigInteger(), ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens")),
            (_USD, ("cost_usd",)),
        )
        for name in names
    ]
    op.create_table(
        "batch_counts",
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("writer", sa.Uuid(), nullable=False),
        *counts,
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batches.id"], name=op.f("fk_batch_counts_batch_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("batch_id", "writer", name=op.f("pk_batch_counts")),
    )


def _create_files() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.Text(), server_default="chunks", nullable=False),
        sa.Column("batch_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", _TIME, nullable=True),
        sa.CheckConstraint(
            "content IN ('chunks', 'batch_output', 'batch_errors')", name=op.f("ck_files_content_known")
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_files_tenant_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
    )
    op.create_index(op.f("ix_files_expires_at"), "files", ["expires_at"])
    op.create_index(op.f("ix_files_tenant_id_id"), "files", ["tenant_id", "id"])
    op.create_table(
        "file_chunks",
        sa.Column("file_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name=op.f("fk_file_chunks_file_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("file_id", "number", name=op.f("pk_file_chunks")),
    )


def _index_jobs() -> None:
    for name, columns, condition in (
        ("uq_jobs_batch_row", ["batch_id", "batch_row", "batch_round"], ""),
        ("ix_jobs_batch_unfinished", ["batch_id"], " AND status IN ('queued', 'in_progress')"),
        ("ix_jobs_batch_finished", ["batch_id", "finished_at", "id"], " AND finished_at IS NOT NULL"),
    ):
        where = sa.text(f"batch_id IS NOT NULL{condition}")
        op.create_index(name, "jobs", columns, unique=name.startswith("uq_"), postgresql_where=where)


def downgrade() -> None:
    for name in ("uq_jobs_batch_row", "ix_jobs_batch_unfinished", "ix_jobs_batch_finished"):
        op.drop_index(name, table_name="jobs")
    for name in ("batch_id", "batch_row", "batch_round", "batch_copies"):
        op.drop_column("jobs", name)
    for table in ("file_chunks", "files", "batch_counts", "batch_rows", "batches"):
        op.drop_table(table)
