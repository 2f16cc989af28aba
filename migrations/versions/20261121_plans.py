"""Plans: which rate limits an API key has."""

import sqlalchemy as sa
from alembic import op

revision = "20261121_0004"
down_revision = "20261121_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("plan", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("api_keys", "plan")
