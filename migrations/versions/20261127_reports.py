"""Costs with twelve decimals, and estimates of what lost attempts cost.

Dropping a numeric's precision changes the catalogue and no row. ``jobs.cost_usd`` keeps its type: the processes of the
version before select it by prepared statements, which end with an error when the type of what they return changes; so
the further decimals are in a column of their own.
"""

import sqlalchemy as sa
from alembic import op

revision = "20261127_reports"
down_revision = "20261121_0007"
branch_labels = None
depends_on = None

_COSTS = {
    "attempts": ["cost_usd"],
    "batch_counts": ["cost_usd"],
    "budget_movements": ["reserved_delta", "spent_delta"],
    "budget_periods": ["reserved_usd", "spent_usd"],
    "ledger_entries": ["cost_usd"],
}
_NEW = {
    "attempts": (
        ("estimated_input_tokens", sa.Integer()),
        ("estimated_output_tokens", sa.Integer()),
        ("estimated_usd", sa.Numeric()),
    ),
    "jobs": (("cost_rest_usd", sa.Numeric()),),
    "ledger_entries": (("lost_attempt_id", sa.Uuid()),),
}


def upgrade() -> None:
    for table, columns in _COSTS.items():
        op.execute(f"ALTER TABLE {table} " + ", ".join(f"ALTER COLUMN {name} TYPE numeric" for name in columns))
    for table, added in _NEW.items():
        for name, kind in added:
            op.add_column(table, sa.Column(name, kind, nullable=True))
    op.add_column("ledger_entries", sa.Column("kind", sa.Text(), server_default="usage", nullable=False))


def downgrade() -> None:
    op.drop_column("ledger_entries", "kind")
    for table, added in _NEW.items():
        for name, _ in added:
            op.drop_column(table, name)
    for table, columns in _COSTS.items():
        op.execute(f"ALTER TABLE {table} " + ", ".join(f"ALTER COLUMN {name} TYPE numeric(18, 6)" for name in columns))
