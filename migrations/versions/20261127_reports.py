"""Costs with twelve decimals, and estimates of what lost attempts cost.

Dropping a numeric's precision changes the catalogue and no row. ``jobs.cost_usd`` keeps its type: the processes of the
version before select it by prepared statements, which end with an error when the type of what they return changes; so
the further decimals are in a column of their own.

Each table is changed in a transaction of its own: to hold the lock of one and wait for that of another could deadlock
with the statements that report attempts. Run again after a failure, the changes that were made find nothing to do.
"""

from alembic import op

revision = "20261127_reports"
down_revision = "20261121_0007"
branch_labels = None
depends_on = None

_COSTS = {
    "attempts": ("cost_usd",),
    "batch_counts": ("cost_usd",),
    "budget_movements": ("reserved_delta", "spent_delta"),
    "budget_periods": ("reserved_usd", "spent_usd"),
    "ledger_entries": ("cost_usd",),
}
_NEW = {
    "attempts": {
        "estimated_input_tokens": "integer",
        "estimated_output_tokens": "integer",
        "estimated_usd": "numeric",
    },
    "jobs": {"cost_rest_usd": "numeric"},
    "ledger_entries": {"kind": "text NOT NULL DEFAULT 'usage'", "lost_attempt_id": "uuid"},
}


def upgrade() -> None:
    for table in sorted({*_COSTS, *_NEW}):
        changes = [f"ALTER COLUMN {name} TYPE numeric" for name in _COSTS.get(table, ())]
        changes += [f"ADD COLUMN IF NOT EXISTS {name} {kind}" for name, kind in _NEW.get(table, {}).items()]
        with op.get_context().autocommit_block():
            op.execute(f"ALTER TABLE {table} {', '.join(changes)}")


def downgrade() -> None:
    for table in sorted({*_COSTS, *_NEW}):
        changes = [f"ALTER COLUMN {name} TYPE numeric(18, 6)" for name in _COSTS.get(table, ())]
        changes += [f"DROP COLUMN {name}" for name in _NEW.get(table, {})]
        op.execute(f"ALTER TABLE {table} {', '.join(changes)}")
