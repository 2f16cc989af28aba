"""What each process has loaded, and events of the platform's own."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "20261121_0005"
down_revision = "20261121_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    models = sa.Column("models", postgresql.JSONB(astext_type=sa.Text()), nullable=False, server_default="[]")
    op.add_column("processes", models)
    op.alter_column("events", "tenant_id", nullable=True)


def downgrade() -> None:
    op.execute("DELETE FROM events WHERE tenant_id IS NULL")
    op.alter_column("events", "tenant_id", nullable=False)
    op.drop_column("processes", "models")
