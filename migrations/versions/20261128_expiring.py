"""The index of expired jobs is one that no other statement is tempted by.

It takes the place of ``ix_jobs_unfinished``, which goes at once: while it is there PostgreSQL may choose it for every
statement about waiting or running jobs.
"""

from migrations.indexes import create_index, drop_index

revision = "20261128_expiring"
down_revision = "20261128_adapted"
branch_labels = None
depends_on = None

_UNFINISHED = "status IN ('queued', 'in_progress')"


def upgrade() -> None:
    create_index("ix_jobs_expiring", "jobs", ["expires_at"], where=f"{_UNFINISHED} AND expires_at > '-infinity'")
    drop_index("ix_jobs_unfinished", "jobs")


def downgrade() -> None:
    create_index("ix_jobs_unfinished", "jobs", ["expires_at"], where=_UNFINISHED)
    drop_index("ix_jobs_expiring", "jobs")
