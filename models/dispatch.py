"""What the relay asks of Postgres: which queues have room, whose turn it is, what to publish again.

Fairness is max-min among the tenants of a queue: a free place goes to the tenant that has the fewest jobs in the
window for its weight. Priority orders the jobs of one tenant, single jobs (0 to 2) before rows of batches (3 to 5);
it never moves one tenant before another.
"""

from sqlalchemy import text

_ROOM = """
    SELECT q.queue, coalesce(c.capacity, 0) AS capacity, coalesce(c.largest, 0) AS largest, p.published, p.singles
    FROM unnest(CAST(:queues AS text[])) AS q(queue)
    LEFT JOIN LATERAL (
        SELECT sum(capacity) AS capacity, max(capacity) AS largest FROM processes
        WHERE role = 'worker' AND q.queue = ANY(queues) AND lease_expires_at > now()
    ) c ON true
    CROSS JOIN LATERAL (
        SELECT count(*) AS published, count(*) FILTER (WHERE priority < 3) AS singles FROM jobs
        WHERE queue = q.queue AND status IN ('queued', 'in_progress') AND dispatched_at IS NOT NULL
    ) p
"""

SELECT_ROOM = text(f"""
    {_ROOM}
    WHERE EXISTS (SELECT FROM jobs WHERE queue = q.queue AND status = 'queued' AND dispatched_at IS NULL
                  AND priority < 3)
""")
"""For each queue that has unpublished single jobs: the workers' capacity, that of the largest, how many jobs are
published, and how many single jobs among these."""

SELECT_ROOM_FOR_ROWS = text(f"""
    WITH unpublished AS MATERIALIZED (
        SELECT DISTINCT queue FROM jobs
        WHERE batch_id IS NOT NULL AND status IN ('queued', 'in_progress') AND dispatched_at IS NULL
    )
    {_ROOM}
    WHERE q.queue IN (SELECT queue FROM unpublished)
""")
"""As SELECT_ROOM, for each queue that has unpublished rows of batches; found among the batches' jobs, of which there
are few, and not behind all single jobs that wait."""

DISPATCH = text("""
    WITH RECURSIVE mine AS MATERIALIZED (
        SELECT pg_try_advisory_xact_lock(hashtextextended(
            CASE WHEN :rows THEN 'headrace.rows.' ELSE 'headrace.queue.' END || :queue, 0)) AS locked
    ), tenant AS (
        (SELECT tenant_id FROM jobs
         WHERE queue = :queue AND status = 'queued' AND dispatched_at IS NULL AND (SELECT locked FROM mine)
         ORDER BY tenant_id LIMIT 1)
        UNION ALL
        SELECT (SELECT tenant_id FROM jobs
                WHERE queue = :queue AND status = 'queued' AND dispatched_at IS NULL AND tenant_id > tenant.tenant_id
                ORDER BY tenant_id LIMIT 1)
        FROM tenant WHERE tenant.tenant_id IS NOT NULL
    ), published AS (
        SELECT tenant_id, count(*) AS jobs FROM jobs
        WHERE queue = :queue AND status IN ('queued', 'in_progress') AND dispatched_at IS NOT NULL
        GROUP BY tenant_id
    ), candidate AS (
        SELECT due.id, due.priority, due.next_attempt_at, t.weight, coalesce(p.jobs, 0) AS published,
               row_number() OVER (PARTITION BY t.id ORDER BY due.priority, due.next_attempt_at, due.id) AS place
        FROM tenant
        JOIN tenants t ON t.id = tenant.tenant_id
        LEFT JOIN published p ON p.tenant_id = t.id
        CROSS JOIN (VALUES (0), (1), (2), (3), (4), (5)) AS level(priority)
        CROSS JOIN LATERAL (
            SELECT id, priority, next_attempt_at FROM jobs
            WHERE queue = :queue AND tenant_id = t.id AND status = 'queued' AND dispatched_at IS NULL
              AND jobs.priority = level.priority AND next_attempt_at <= now()
            ORDER BY next_attempt_at, id LIMIT :room
        ) due
    ), chosen AS (
        SELECT id, priority >= 3 AS of_batch,
               row_number() OVER (ORDER BY (published + place)::float / weight, priority, next_attempt_at, id) AS turn
        FROM candidate
        ORDER BY turn LIMIT :room
    ), locked AS (
        SELECT jobs.id FROM jobs JOIN chosen ON chosen.id = jobs.id AND of_batch = :rows
        WHERE status = 'queued' AND dispatched_at IS NULL
        ORDER BY jobs.id FOR UPDATE OF jobs SKIP LOCKED
    ), marked AS (
        UPDATE jobs SET dispatched_at = now() FROM locked WHERE jobs.id = locked.id RETURNING jobs.id
    )
    SELECT marked.id FROM marked JOIN chosen ON chosen.id = marked.id ORDER BY chosen.turn
""")
"""Choose ``room`` due jobs of a queue in fair order; mark those of them as published that are ``rows`` of batches, or
those that are single jobs, and return them in that order; none while another relay is at it.

The tenants are found by a loose index scan, so the cost grows with the tenants that wait and the room, not with the
backlog: a million rows of one tenant are as quick to pass as ten.
"""

UNDISPATCH_STALE = text("""
    WITH stale AS (
        SELECT id FROM jobs
        WHERE queue = :queue AND status = 'queued' AND dispatched_at < now() - make_interval(secs => :stale_s)
        ORDER BY id
        FOR UPDATE SKIP LOCKED
    )
    UPDATE jobs SET dispatched_at = NULL FROM stale WHERE jobs.id = stale.id
    RETURNING jobs.id
""")
"""Make published jobs due again that nobody claimed or holds a message of."""
