"""Files: what callers upload and what batches give back, kept in Postgres in chunks."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, LargeBinary, func, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, PrimaryId

CHUNK_BYTES = 1 << 20


class File(Base):
    """A file of a tenant's. Its content is in chunks, or, for the output of a batch (``content`` says which), made
    from the batch's rows when it is read; ``bytes`` is then its size when the batch ended.

    ``bytes`` is -1 while a file is being uploaded; nobody sees it then, and ``expires_at`` is an hour after its
    latest chunk, so that what a dead process leaves is swept away. It is -2 while a file is being deleted, a few
    chunks at a time (:class:`workers.maintenance.Maintenance`). It is 0 for a batch's output whose size nobody has
    measured yet.
    """

    __tablename__ = "files"
    __table_args__ = (
        CheckConstraint("content IN ('chunks', 'batch_output', 'batch_errors')", name="content_known"),
        Index(None, "tenant_id", "id"),
        Index(None, "expires_at"),
        Index("ix_files_unmeasured", "batch_id", postgresql_where=text("content <> 'chunks' AND bytes = 0")),
    )

    id: Mapped[PrimaryId]
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    purpose: Mapped[str]
    filename: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    content: Mapped[str] = mapped_column(server_default="chunks")
    batch_id: Mapped[UUID | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]


class FileChunk(Base):
    """A piece of a file's content; ``number`` counts from 0."""

    __tablename__ = "file_chunks"

    file_id: Mapped[UUID] = mapped_column(ForeignKey("files.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)


_COLUMNS = "id, purpose, filename, bytes, content, batch_id, created_at, expires_at"
_THERE = "tenant_id = :tenant_id AND bytes >= 0 AND (expires_at IS NULL OR expires_at > now())"

BEGIN_FILE = text("""
    INSERT INTO files (id, tenant_id, purpose, filename, bytes, expires_at)
    VALUES (:id, :tenant_id, :purpose, :filename, -1, now() + interval '1 hour')
""")
"""Begin an upload."""

ADD_CHUNK = text("""
    WITH renewed AS (
        UPDATE files SET expires_at = now() + interval '1 hour' WHERE id = :id AND bytes = -1 RETURNING id
    )
    INSERT INTO file_chunks (file_id, number, data) SELECT id, :number, :data FROM renewed
    RETURNING number
""")
"""Add a piece to an upload; no row when the upload has been swept away."""

FINISH_FILE = text(f"""
    UPDATE files
    SET bytes = :bytes, created_at = now(),
        expires_at = now() + make_interval(secs => CAST(:expires_in_s AS double precision))
    WHERE id = :id AND bytes = -1
    RETURNING {_COLUMNS}
""")
"""Make an upload a file, for ever if ``expires_in_s`` is null."""

SELECT_STORED = text("""
    SELECT count(*) AS files, coalesce(sum(bytes), 0) AS bytes FROM files
    WHERE tenant_id = :tenant_id AND content = 'chunks' AND bytes >= 0 AND (expires_at IS NULL OR expires_at > now())
""")
"""What a tenant has stored: its files, without the output of batches, and their bytes."""

LOCK_STORED = text("SELECT pg_advisory_xact_lock(hashtextextended('headrace.files.' || CAST(:tenant_id AS text), 0))")
"""Let no other file of a tenant be finished before this transaction has ended."""

DROP_UPLOAD = text("UPDATE files SET bytes = -2, expires_at = now() WHERE id = :id AND bytes = -1")
"""Forget an upload that was broken off; its chunks are swept away."""

SELECT_FILE = text(f"SELECT {_COLUMNS} FROM files WHERE id = :id AND {_THERE}")
"""A tenant's file."""

LIST_FILES = {
    order: text(f"""
        SELECT {_COLUMNS} FROM files
        WHERE {_THERE} AND (CAST(:purpose AS text) IS NULL OR purpose = :purpose)
          AND (CAST(:after AS uuid) IS NULL OR id {sign} :after)
        ORDER BY id {order} LIMIT :limit
    """)
    for order, sign in (("asc", ">"), ("desc", "<"))
}
"""A page of a tenant's files, by order; ``after`` is the last id of the page before."""

DELETE_FILE = text("""
    UPDATE files SET bytes = -2, expires_at = now() WHERE id = :id AND tenant_id = :tenant_id AND bytes >= 0
    RETURNING id
""")
"""Forget a tenant's file; its chunks are swept away."""

SELECT_CHUNK = text("SELECT data FROM file_chunks WHERE file_id = :id AND number = :number")
"""A piece of a file."""

SELECT_EXPIRED_FILES = text("""
    SELECT id, expires_at FROM files
    WHERE expires_at <= now()
      AND (expires_at, id) > (coalesce(CAST(:after_time AS timestamptz), '-infinity'),
                              coalesce(CAST(:after_id AS uuid), '00000000-0000-0000-0000-000000000000'))
    ORDER BY expires_at, id LIMIT :limit
""")
"""Files that are past their time, and uploads that nobody goes on with: those after a position, oldest first."""

SWEEP_FILE = text("""
    WITH file AS MATERIALIZED (
        SELECT id FROM files WHERE id = :id AND expires_at <= now() FOR NO KEY UPDATE SKIP LOCKED
    ), marked AS (
        UPDATE files SET bytes = -2 FROM file WHERE files.id = file.id AND bytes <> -2
    ), gone AS (
        DELETE FROM file_chunks
        WHERE file_id = (SELECT id FROM file)
          AND number = ANY(ARRAY(SELECT c.number FROM file_chunks c WHERE c.file_id = :id
                                 ORDER BY c.number LIMIT :chunks))
        RETURNING number
    )
    SELECT count(*) AS chunks FROM gone
""")
"""Delete the next chunks of a file that is past its time; nobody can see it, renew it or add to it from then on."""

FORGET_FILE = text("""
    DELETE FROM files WHERE id = :id AND bytes = -2 AND NOT EXISTS (SELECT FROM file_chunks WHERE file_id = :id)
""")
"""Forget a file all of whose chunks are deleted."""

SELECT_UNMEASURED = text("""
    SELECT b.id, b.last_round, b.total FROM batches b
    WHERE b.id IN (SELECT batch_id FROM files WHERE content <> 'chunks' AND bytes = 0)
      AND b.status IN ('completed', 'expired', 'cancelled')
    ORDER BY b.id
""")
"""The batches that ended and whose files have no size yet."""
