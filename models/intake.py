"""Taking a batch in: its rows by COPY in committed slices, then its reservation and itself in one short transaction.

Nobody sees the rows before their batch has begun: a batch is recorded, or leaves ``validating``, in the last
transaction. Until then ``intakes`` has a line for whoever writes the rows. Each slice renews it, and the last
transaction takes it away. Where the writer failed or died the line is ``abandoned``: from then on the writer can write
no more, and the rows are deleted, a few thousand at a time.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy import func, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, PrimaryId
from models.batch import AT_BEGINNING


class Intake(Base):
    """A batch whose rows are being written; ``id`` is the batch's, ``writer`` tells one writer of it from another."""

    __tablename__ = "intakes"

    id: Mapped[PrimaryId]
    writer: Mapped[UUID]
    touched_at: Mapped[datetime] = mapped_column(server_default=func.now())
    abandoned: Mapped[bool] = mapped_column(server_default="false")


BEGIN_INTAKE = text("""
    INSERT INTO intakes (id, writer) VALUES (:id, :writer)
    ON CONFLICT (id) DO UPDATE SET writer = :writer, touched_at = now(), abandoned = false
""")
"""Begin to write rows; none of an earlier writer's may be left (ABANDON_INTAKE, SWEEP_ROWS)."""

RENEW_INTAKE = text("""
    UPDATE intakes SET touched_at = now() WHERE id = :id AND writer = :writer AND NOT abandoned RETURNING id
""")
"""Go on writing rows; nothing when they were given up."""

END_INTAKE = text("DELETE FROM intakes WHERE id = :id AND writer = :writer AND NOT abandoned RETURNING id")
"""End the writing of rows, in the transaction in which their batch begins; nothing when they were given up."""

ABANDON_INTAKE = text("""
    UPDATE intakes SET abandoned = true
    WHERE id = :id AND writer = coalesce(CAST(:writer AS uuid), writer)
    RETURNING id
""")
"""Give the rows up that a writer, or with null any, has written."""

ABANDON_DEAD_INTAKES = text("""
    UPDATE intakes SET abandoned = true
    WHERE id IN (SELECT id FROM intakes
                 WHERE NOT abandoned AND touched_at < now() - make_interval(secs => :silent_s)
                 FOR NO KEY UPDATE SKIP LOCKED)
""")
"""Give the rows up whose writer has been silent for so long that it must be dead."""

SELECT_ABANDONED = text("SELECT id FROM intakes WHERE abandoned ORDER BY touched_at LIMIT :limit")

SWEEP_ROWS = text("""
    WITH mine AS MATERIALIZED (
        SELECT id FROM intakes
        WHERE id = :id AND abandoned AND NOT EXISTS (SELECT FROM batches WHERE id = :id AND total > 0)
        FOR NO KEY UPDATE
    ), gone AS (
        DELETE FROM batch_rows
        WHERE batch_id = (SELECT id FROM mine)
          AND number < (SELECT min(number) FROM batch_rows WHERE batch_id = :id) + CAST(:rows AS int)
        RETURNING number
    )
    SELECT count(*) AS rows FROM gone
""")
"""Delete the next rows that were given up."""

FORGET_INTAKE = text("""
    DELETE FROM intakes WHERE id = :id AND abandoned AND NOT EXISTS (SELECT FROM batch_rows WHERE batch_id = :id)
""")
"""Forget a writer none of whose rows is left."""

COPY_ROWS = """
    COPY batch_rows (batch_id, number, line, custom_id, route, cells, request, reserved_usd, digest) FROM STDIN
"""
"""Rows in Postgres's text form; psycopg runs it, which SQLAlchemy cannot."""

TAKE_TIME = text("SET LOCAL statement_timeout = 0")
"""Rows come as fast as their file is read, and a look at a million takes longer than a statement usually may."""

FLUSH_LATER = text("SET LOCAL synchronous_commit = off")
"""A slice needs no disk flush of its own: the last transaction's flush has all that was written before it, and where
there is no last transaction, the rows are worth nothing."""

MARK_SAME = text("""
    UPDATE batch_rows r SET same_as = f.first, reserved_usd = 0
    FROM (SELECT digest, min(number) AS first FROM batch_rows
          WHERE batch_id = :id GROUP BY digest HAVING count(*) > 1) f
    WHERE r.batch_id = :id AND r.digest = f.digest AND r.number > f.first
""")
"""Tie the rows of a new batch that repeat another row's request to the first that has it."""

SUM_ROWS = text("SELECT coalesce(sum(reserved_usd), 0) AS reserved_usd FROM batch_rows WHERE batch_id = :id")
"""The worst case of a batch's rows altogether."""

SELECT_REPEATED = text("""
    SELECT custom_id, array_agg(line ORDER BY number) AS lines
    FROM batch_rows WHERE batch_id = :id AND custom_id IS NOT NULL
    GROUP BY custom_id HAVING count(*) > 1 ORDER BY min(number) LIMIT :limit
""")
"""The custom ids that several rows of a new batch have, with the lines of those rows."""

INSERT_BATCH = text("""
    INSERT INTO batches (id, tenant_id, api_key_id, status, endpoint, name, model, routes, request, columns, template,
                         dialect, dedupe, priority, max_parallel, completion_window, callback_url, end_user, team,
                         labels, input_file_id, output_expires_s, total, reserved_usd, budget_periods, in_progress_at,
                         expires_at, idempotency_key, request_hash)
    VALUES (:id, :tenant_id, :api_key_id, 'in_progress', :endpoint, :name, :model, CAST(:routes AS jsonb),
            CAST(:request AS jsonb), CAST(:columns AS text[]), CAST(:template AS jsonb), CAST(:dialect AS jsonb),
            :dedupe, :priority, :max_parallel, :completion_window, :callback_url, :end_user, :team,
            CAST(:labels AS jsonb), :input_file_id, :output_expires_s, :total, :reserved_usd,
            CAST(:budget_periods AS bigint[]), now(), now() + make_interval(secs => :expires_in), :idempotency_key,
            :request_hash)
    ON CONFLICT (tenant_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING id
""")
"""Record a batch that was read whole and begins; nothing when its idempotency key has made one before."""

SELECT_BATCH_BY_KEY = text(
    "SELECT id, request_hash FROM batches WHERE tenant_id = :tenant_id AND idempotency_key = :idempotency_key"
)
"""The batch that a tenant's idempotency key made."""

BEGIN_BATCH = text("""
    UPDATE batches
    SET status = 'in_progress', in_progress_at = now(), model = :model, routes = CAST(:routes AS jsonb),
        request = CAST(:request AS jsonb), columns = CAST(:columns AS text[]), template = CAST(:template AS jsonb),
        total = :total, reserved_usd = :reserved_usd, budget_periods = CAST(:budget_periods AS bigint[])
    WHERE id = :id AND status = 'validating'
    RETURNING id
""")
"""Let a batch begin that was recorded before its file was read; nothing when it was cancelled meanwhile."""

COUNT_REFUSED = text(f"""
    INSERT INTO batch_counts (batch_id, writer, failed) VALUES (:id, '{AT_BEGINNING}', :rows)
""")
"""Count the rows of a new batch that were refused, in the transaction in which it begins."""
