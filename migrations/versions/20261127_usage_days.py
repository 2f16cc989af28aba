"""The ledger added up by day."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "20261127_usage_days"
down_revision = "20261127_job_lists"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def _group() -> list[sa.Column[Any]]:
    """What usage is told apart by, beside the tenant and the time."""
    return [
        sa.Column("llm", sa.Text(), nullable=False),
        sa.Column("team", sa.Text(), nullable=True),
        sa.Column("end_user", sa.Text(), nullable=True),
        sa.Column("api_key_id", sa.Uuid(), nullable=True),
    ]


def upgrade() -> None:
    op.create_table(
        "usage_days",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        *_group(),
        sa.Column("entries", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_usd", sa.Numeric(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_usage_days_tenant_id")),
    )
    op.create_index(
        "uq_usage_days_group",
        "usage_days",
        ["tenant_id", "day", "llm", "team", "end_user", "api_key_id"],
        unique=True,
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "spend_days",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("cost_usd", sa.Numeric(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_spend_days_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "day", name=op.f("pk_spend_days")),
    )
    op.create_table(
        "usage_repeats",
        sa.Column("attempt_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        *_group(),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_usage_repeats_tenant_id")),
        sa.PrimaryKeyConstraint("attempt_id", "created_at", name=op.f("pk_usage_repeats")),
    )
    op.create_index(op.f("ix_usage_repeats_tenant_id_created_at"), "usage_repeats", ["tenant_id", "created_at"])
    op.create_table(
        "usage_progress",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("rolled_until", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_progress")),
    )
    op.execute("INSERT INTO usage_progress (id, rolled_until) VALUES (1, timestamptz 'epoch')")


def downgrade() -> None:
    for table in ("usage_progress", "usage_repeats", "spend_days", "usage_days"):
        op.drop_table(table)
