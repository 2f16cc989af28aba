"""What was changed in a request for the LLM that an attempt called."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "20261128_adapted"
down_revision = "20261127_intakes"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("adapted", postgresql.JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("attempts", "adapted")
