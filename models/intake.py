"""Taking a batch in: its rows by COPY, its reservation as one, itself as the last line of the same transaction."""

from sqlalchemy import text

COPY_ROWS = """
    COPY batch_rows (batch_id, number, line, custom_id, route, cells, request, reserved_usd, digest) FROM STDIN
"""
"""Rows in Postgres's text form; psycopg runs it, which SQLAlchemy cannot."""

TAKE_TIME = text("SET LOCAL statement_timeout = 0")
"""Rows come as fast as their file is read: a COPY of a million may take longer than a statement usually may."""

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
                         dedupe, priority, max_parallel, completion_window, callback_url, end_user, team, labels,
                         input_file_id, output_expires_s, total, reserved_usd, budget_periods, in_progress_at,
                         expires_at, idempotency_key, request_hash)
    VALUES (:id, :tenant_id, :api_key_id, 'in_progress', :endpoint, :name, :model, CAST(:routes AS jsonb),
            CAST(:request AS jsonb), CAST(:columns AS text[]), CAST(:template AS jsonb), :dedupe, :priority,
            :max_parallel, :completion_window, :callback_url, :end_user, :team, CAST(:labels AS jsonb),
            :input_file_id, :output_expires_s, :total, :reserved_usd, CAST(:budget_periods AS bigint[]), now(),
            now() + make_interval(secs => :expires_in), :idempotency_key, :request_hash)
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
