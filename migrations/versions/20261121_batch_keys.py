"""Idempotency keys of batches."""

import sqlalchemy as sa
from alembic import op

revision = "20261121_0007"
down_revision = "20261121_0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("idempotency_key", "request_hash"):
        op.add_column("batches", sa.Column(name, sa.Text(), nullable=True))
    op.create_index(
        "uq_batches_idempotency_key",
        "batches",
        ["tenant_id", "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("uq_batches_idempotency_key", "batches")
    for name in ("request_hash", "idempotency_key"):
        op.drop_column("batches", name)
