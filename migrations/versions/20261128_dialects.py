"""How the results of a batch are written as CSV."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "20261128_dialects"
down_revision = "20261128_expiring"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batches", sa.Column("dialect", postgresql.JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("batches", "dialect")
