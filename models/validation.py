"""Batches whose input file is still to be read (``validating``): who reads one, and what becomes of it.

Whoever reads a batch's file holds a lock that is its connection's: when that process dies, the lock is free and another
one starts from the first row: it deletes the rows that were written before (:mod:`models.intake`).
"""

from sqlalchemy import text

_FIRST_KEY = 1_914_007_353
"""Keeps these locks apart from other advisory locks of two keys; arbitrary."""

RECORD_BATCH = text("""
    INSERT INTO batches (id, tenant_id, api_key_id, status, endpoint, name, dedupe, priority, max_parallel,
                         completion_window, end_user, team, labels, input_file_id, output_expires_s, expires_at,
                         idempotency_key, request_hash)
    VALUES (:id, :tenant_id, :api_key_id, 'validating', :endpoint, :name, :dedupe, :priority, :max_parallel,
            :completion_window, :end_user, :team, CAST(:labels AS jsonb), :input_file_id, :output_expires_s,
            now() + make_interval(secs => :expires_in), :idempotency_key, :request_hash)
    ON CONFLICT (tenant_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING id
""")
"""Record a batch before its file is read; nothing when its idempotency key has made one before."""

LOCK_UNREAD = text(f"SELECT pg_try_advisory_lock({_FIRST_KEY}, hashtext(CAST(:id AS text))) AS locked")
"""Make this connection the one that reads a batch's file; false when another one does."""

UNLOCK_UNREAD = text(f"SELECT pg_advisory_unlock({_FIRST_KEY}, hashtext(CAST(:id AS text))) AS unlocked")

SELECT_UNREAD = text(f"""
    WITH read AS MATERIALIZED (
        SELECT CAST(l.objid AS bigint) AS key FROM pg_locks l
        JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
        WHERE l.locktype = 'advisory' AND l.classid = {_FIRST_KEY} AND l.objsubid = 2
    ), validating AS MATERIALIZED (
        SELECT b.id, b.tenant_id,
               b.created_at < now() - interval '2 seconds' OR b.id = ANY(CAST(:mine AS uuid[])) AS due,
               CAST(hashtext(b.id::text) AS bigint) & 4294967295 IN (SELECT key FROM read) AS is_read
        FROM batches b WHERE b.status = 'validating' AND b.expires_at > now()
    )
    SELECT DISTINCT ON (v.tenant_id) v.id, v.tenant_id, coalesce(r.files, 0) AS files_read
    FROM validating v
    LEFT JOIN (SELECT tenant_id, count(*) AS files FROM validating WHERE is_read GROUP BY tenant_id) r
         ON r.tenant_id = v.tenant_id
    WHERE v.due AND NOT v.is_read AND NOT v.id = ANY(CAST(:taken AS uuid[]))
    ORDER BY v.tenant_id, v.id
""")
"""The oldest batch of each tenant whose file nobody reads, and how many of the tenant's files are being read now by any
process. A new batch is left for two seconds to the process that recorded it, unless that is this one (``mine``);
``taken`` are those that this process has begun with."""

SELECT_TO_READ = text("""
    SELECT b.id, b.tenant_id, b.api_key_id, b.endpoint, b.name, b.dedupe, b.priority, b.max_parallel,
           b.completion_window, b.end_user, b.team, b.labels, b.input_file_id, b.output_expires_s,
           extract(epoch FROM b.expires_at - b.created_at)::float AS expires_in, f.bytes AS file_bytes,
           (SELECT k.plan FROM api_keys k WHERE k.id = b.api_key_id) AS plan
    FROM batches b LEFT JOIN files f ON f.id = b.input_file_id AND f.bytes >= 0
    WHERE b.id = :id AND b.status = 'validating'
""")
"""A batch whose file is still to be read, with the file's size, null if it is deleted, and its key's plan."""

SELECT_LIVE_ROWS = text("""
    SELECT coalesce(sum(total), 0) AS rows FROM batches
    WHERE tenant_id = :tenant_id AND status NOT IN ('completed', 'expired', 'cancelled', 'failed')
""")
"""The rows of a tenant's batches that have not ended."""

REFUSE_BATCH = text("""
    UPDATE batches SET status = 'failed', failed_at = now(), errors = CAST(:errors AS jsonb)
    WHERE id = :id AND status = 'validating'
    RETURNING id
""")
"""End a batch whose file cannot be used."""
