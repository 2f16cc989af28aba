"""Who writes the rows of batches that have not begun."""

import sqlalchemy as sa
from alembic import op

revision = "20261127_intakes"
down_revision = "20261127_usage_days"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "intakes",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("writer", sa.Uuid(), nullable=False),
        sa.Column("touched_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("abandoned", sa.Boolean(), server_default="false", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_intakes")),
    )


def downgrade() -> None:
    op.drop_table("intakes")
