"""What the relay asks of Postgres: which queues have room, whose turn it is, what to publish again.

Fairness is max-min among the tenants of a queue: a free place goes to the tenant that has the fewest jobs in the
window for its weight. Priority orders the jobs of one tenant, single jobs (0 to 2) before rows of batches (3 to 5);
it never moves one tenant before another.
"""

from sqlalchemy import text

LOCK_QUEUE = text("SELECT pg_try_advisory_xact_lock(hashtextextended('headrace.queue.' || :queue, 0)) AS locked")
"""Make this transaction the queue's only publisher; false when another relay is at it."""

SELECT_ROOM = text("""
    SELECT q.queue, coalesce(c.capacity, 0) AS capacity, coalesce(c.largest, 0) AS largest,
           (SELECT count(*) FROM jobs
            WHERE queue = q.queue AND status IN ('queued', 'in_progress') AND dispatched_at IS NOT NULL) AS published,
           EXISTS (SELECT FROM jobs WHERE queue = q.queue AND status = 'queued' AND dispatched_at IS NULL
                   AND priority < 3) AS singles
    FROM unnest(CAST(:queues AS text[])) AS q(queue)
    LEFT JOIN LATERAL (
        SELECT sum(capacity) AS capacity, max(capacity) AS largest FROM processes
        WHERE role = 'worker' AND q.queue = ANY(queues) AND lease_expires_at > now()
    ) c ON true
    WHERE EXISTS (SELECT FROM jobs WHERE queue = q.queue AND status = 'queued' AND dispatched_at IS NULL)
""")
"""For each queue that has unpublished jobs: the workers' capacity, that of the largest, what is published, and whether
some of the unpublished are single jobs, not rows of batches."""

DISPATCH = text("""
    WITH RECURSIVE tenant AS (
        (SELECT tenant_id FROM jobs WHERE queue = :queue AND status = 'queued' AND dispatched_at IS NULL
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
        SELECT jobs.id FROM jobs JOIN chosen ON chosen.id = jobs.id
        WHERE status = 'queued' AND dispatched_at IS NULL
        ORDER BY jobs.id FOR UPDATE OF jobs SKIP LOCKED
    ), marked AS (
        UPDATE jobs SET dispatched_at = now() FROM locked WHERE jobs.id = locked.id RETURNING jobs.id
    )
    SELECT marked.id, chosen.of_batch FROM marked JOIN chosen ON chosen.id = marked.id ORDER BY chosen.turn
""")
"""Mark up to ``room`` due jobs of a queue as published, in fair order, and return them in that order, with whether they
are rows of a batch.

The tenants are found by a loose index scan, so the cost grows with the tenants that wait and the room, not with the
backlog: a million rows of one tenant are as quick to pass as ten.
"""

UNDISPATCH_STALE = text("""
    UPDATE jobs SET dispatched_at = NULL
    WHERE queue = :queue AND status = 'queued' AND dispatched_at < now() - make_interval(secs => :stale_s)
    RETURNING id
""")
"""Make published jobs due again that nobody claimed or holds a message of."""
