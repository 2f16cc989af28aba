"""Money: budgets with their periods and movements, events, and what attempts and ledger entries say of costs."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "20261121_0002"
down_revision = "20261121_0001"
branch_labels = None
depends_on = None

_USD = sa.Numeric(precision=18, scale=6)
_NEW_COLUMNS = {
    "jobs": (
        ("reserved_usd", _USD, "0"),
        ("budget_periods", postgresql.ARRAY(sa.BigInteger()), "{}"),
    ),
    "attempts": (
        ("cached_input_tokens", sa.Integer(), "0"),
        ("reasoning_tokens", sa.Integer(), "0"),
        ("usage_estimated", sa.Boolean(), "false"),
    ),
    "ledger_entries": (
        ("api_key_id", sa.Uuid(), None),
        ("team", sa.Text(), None),
        ("end_user", sa.Text(), None),
        ("cached_input_tokens", sa.Integer(), "0"),
        ("cached_input_price", _USD, None),
    ),
}


def upgrade() -> None:
    for table, columns in _NEW_COLUMNS.items():
        for name, kind, default in columns:
            op.add_column(table, sa.Column(name, kind, server_default=default, nullable=default is None))
    op.create_table(
        "budgets",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("window", sa.Text(), nullable=False),
        sa.Column("limit_usd", _USD, nullable=False),
        sa.Column("alert_at", sa.Numeric(precision=7, scale=6), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("scope IN ('tenant', 'team', 'user', 'key')", name=op.f("ck_budgets_scope_known")),
        sa.CheckConstraint("\"window\" IN ('day', 'month', 'total')", name=op.f("ck_budgets_window_known")),
        sa.CheckConstraint("(scope = 'tenant') = (subject IS NULL)", name=op.f("ck_budgets_subject_of_scope")),
        sa.CheckConstraint("limit_usd >= 0", name=op.f("ck_budgets_limit_not_negative")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_budgets_tenant_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budgets")),
        sa.UniqueConstraint(
            "tenant_id",
            "scope",
            "subject",
            "window",
            name=op.f("uq_budgets_tenant_id_scope_subject_window"),
            postgresql_nulls_not_distinct=True,
        ),
    )
    op.create_table(
        "budget_periods",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("budget_id", sa.Uuid(), nullable=False),
        sa.Column("period_start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("limit_usd", _USD, nullable=False),
        sa.Column("spent_usd", _USD, server_default="0", nullable=False),
        sa.Column("reserved_usd", _USD, server_default="0", nullable=False),
        sa.ForeignKeyConstraint(
            ["budget_id"], ["budgets.id"], name=op.f("fk_budget_periods_budget_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budget_periods")),
        sa.UniqueConstraint("budget_id", "period_start", name=op.f("uq_budget_periods_budget_id_period_start")),
    )
    op.create_table(
        "budget_movements",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("period_id", sa.BigInteger(), nullable=False),
        sa.Column("reserved_delta", _USD, nullable=False),
        sa.Column("spent_delta", _USD, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budget_movements")),
    )
    op.create_index(op.f("ix_budget_movements_period_id"), "budget_movements", ["period_id"], unique=False)
    op.create_table(
        "events",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("once_key", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_events_tenant_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sa.UniqueConstraint("once_key", name=op.f("uq_events_once_key")),
    )
    op.create_index(op.f("ix_events_tenant_id_created_at"), "events", ["tenant_id", "created_at"], unique=False)
    # A period's row is rewritten by every group of reservations: room for its versions on its own page, and
    # an early clean-up of them and of the movements, which are written once and soon folded away.
    op.execute("ALTER TABLE budget_periods SET (fillfactor = 20)")
    for table in ("budget_periods", "budget_movements"):
        op.execute(
            f"ALTER TABLE {table} SET (autovacuum_vacuum_scale_factor = 0.05,"
            " autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0)"
        )


def downgrade() -> None:
    for table in ("events", "budget_movements", "budget_periods", "budgets"):
        op.drop_table(table)
    for table, columns in _NEW_COLUMNS.items():
        for name, _, _ in columns:
            op.drop_column(table, name)
