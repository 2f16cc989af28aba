"""Indexes that list the jobs of a tenant or a batch by status, and the files without a size."""

from migrations.indexes import create_index, drop_index

revision = "20261127_job_lists"
down_revision = "20261127_dispatch"
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_index("ix_jobs_tenant_status", "jobs", ["tenant_id", "status", "id"], where="status <> 'completed'")
    create_index(
        "ix_jobs_batch_status",
        "jobs",
        ["batch_id", "status", "batch_row", "batch_round"],
        where="batch_id IS NOT NULL AND status IN ('failed', 'cancelled', 'expired')",
    )
    create_index("ix_files_unmeasured", "files", ["batch_id"], where="content <> 'chunks' AND bytes = 0")


def downgrade() -> None:
    drop_index("ix_files_unmeasured", "files")
    drop_index("ix_jobs_batch_status", "jobs")
    drop_index("ix_jobs_tenant_status", "jobs")
