"""What the relay asks of Postgres: what is published, who has jobs that are due, and the jobs that go next.

Fairness is max-min among the tenants of a queue: a free place goes to the tenant that has the fewest jobs in the
window for its weight. Among tenants with as many, tenants rotate (:mod:`workers.rotation`). Priority orders the jobs of
one tenant, single jobs (0 to 2) before rows of batches (3 to 5); it never moves one tenant before another.

Every scan begins at a time before which the relay knows that nothing is left. While a long transaction is open,
PostgreSQL keeps the index entries of all jobs that have passed since, and a scan from the start would visit them all.
"""

from sqlalchemy import text

from models.lifecycle import QUEUED

FIRST_BATCH_PRIORITY = 3
"""The priorities of single jobs are below it, those of rows of batches are not."""

SELECT_WINDOWS = text(f"""
    SELECT q.queue, now() AS looked_at, c.capacity, c.largest, p.oldest,
           p.tenants AS published_tenants, p.jobs AS published_jobs, coalesce(p.singles, 0) AS singles,
           d.tenants AS due_tenants, d.weights AS due_weights, d.priorities AS due_priorities, d.first AS due_first
    FROM unnest(CAST(:queues AS text[]), CAST(:published_since AS timestamptz[]), CAST(:due_since AS timestamptz[]))
         AS q(queue, published_since, due_since)
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(capacity), 0) AS capacity, coalesce(max(capacity), 0) AS largest FROM processes
        WHERE role = 'worker' AND q.queue = ANY(queues) AND lease_expires_at > now()
    ) c
    CROSS JOIN LATERAL (
        SELECT min(t.oldest) AS oldest, array_agg(t.tenant_id) AS tenants, array_agg(t.jobs) AS jobs,
               sum(t.singles) AS singles
        FROM (
            SELECT tenant_id, count(*) AS jobs, count(*) FILTER (WHERE priority < {FIRST_BATCH_PRIORITY}) AS singles,
                   min(dispatched_at) AS oldest
            FROM jobs
            WHERE queue = q.queue AND finished_at IS NULL AND dispatched_at >= q.published_since
            GROUP BY tenant_id
        ) t
    ) p
    CROSS JOIN LATERAL (
        SELECT array_agg(t.tenant_id) AS tenants, array_agg(tenants.weight) AS weights,
               array_agg(t.priority) AS priorities, array_agg(t.first) AS first
        FROM (
            SELECT j.tenant_id, level.priority, min(j.next_attempt_at) AS first
            FROM (VALUES (0), (1), (2), (3), (4), (5)) AS level(priority)
            CROSS JOIN LATERAL (
                SELECT tenant_id, next_attempt_at FROM jobs
                WHERE queue = q.queue AND priority = level.priority AND finished_at IS NULL AND dispatched_at IS NULL
                  AND next_attempt_at > q.due_since AND next_attempt_at <= now() AND status <> 'in_progress'
            ) j
            GROUP BY j.tenant_id, level.priority
        ) t
        JOIN tenants ON tenants.id = t.tenant_id
    ) d
""")
"""For each queue: its workers' capacity and that of the largest; the published jobs of each tenant, how many of all are
single jobs, and when the oldest was published; and the tenants and priorities of jobs that became due after
``due_since``, with the time of the first. Jobs published before ``published_since`` are left out."""

SELECT_WAITING = text("""
    WITH RECURSIVE waiting AS (
        (SELECT tenant_id, priority, next_attempt_at FROM jobs
         WHERE queue = :queue AND status = 'queued' AND dispatched_at IS NULL
         ORDER BY tenant_id, priority, next_attempt_at LIMIT 1)
        UNION ALL
        SELECT n.tenant_id, n.priority, n.next_attempt_at
        FROM waiting w
        CROSS JOIN LATERAL (
            SELECT tenant_id, priority, next_attempt_at FROM jobs
            WHERE queue = :queue AND status = 'queued' AND dispatched_at IS NULL
              AND (tenant_id, priority) > (w.tenant_id, w.priority)
            ORDER BY tenant_id, priority, next_attempt_at LIMIT 1
        ) n
    )
    SELECT w.tenant_id, t.weight, w.priority, w.next_attempt_at AS first
    FROM waiting w JOIN tenants t ON t.id = w.tenant_id
    WHERE w.next_attempt_at <= now()
""")
"""Every tenant and priority of a queue that has due jobs, with the time of the first: a loose index scan, which costs
two or three index pages for each of them, not for each job."""

DISPATCH = text(f"""
    WITH mine AS MATERIALIZED (
        SELECT pg_try_advisory_xact_lock(hashtextextended(
            CASE WHEN :rows THEN 'headrace.rows.' ELSE 'headrace.queue.' END || :queue, 0)) AS locked
    ), candidate AS MATERIALIZED (
        SELECT due.id, due.next_attempt_at, a.place, a.priority, a.weight, a.published, a.served,
               row_number() OVER (PARTITION BY a.tenant_id ORDER BY a.priority, due.next_attempt_at, due.id) - 1 AS nth
        FROM unnest(CAST(:tenants AS uuid[]), CAST(:priorities AS smallint[]), CAST(:since AS timestamptz[]),
                    CAST(:weights AS int[]), CAST(:published AS int[]), CAST(:served AS float[]),
                    CAST(:most AS int[]))
             WITH ORDINALITY AS a(tenant_id, priority, since, weight, published, served, most, place)
        CROSS JOIN LATERAL (
            SELECT id, next_attempt_at FROM jobs
            WHERE queue = :queue AND tenant_id = a.tenant_id AND priority = a.priority
              AND status = 'queued' AND dispatched_at IS NULL
              AND next_attempt_at >= a.since AND next_attempt_at <= now()
            ORDER BY next_attempt_at, id LIMIT a.most
        ) due
        WHERE (SELECT locked FROM mine)
    ), chosen AS MATERIALIZED (
        SELECT id, next_attempt_at, place, priority >= {FIRST_BATCH_PRIORITY} AS of_batch,
               row_number() OVER (ORDER BY (published + nth) / weight, served + nth::float / weight, place, nth) AS turn
        FROM candidate
        ORDER BY turn LIMIT :room
    ), locked AS (
        SELECT one.id FROM (SELECT id FROM chosen WHERE of_batch = :rows ORDER BY id) c
        CROSS JOIN LATERAL (
            SELECT id FROM jobs WHERE id = c.id AND {QUEUED} AND dispatched_at IS NULL
            FOR UPDATE SKIP LOCKED
        ) one
    ), marked AS (
        UPDATE jobs SET dispatched_at = now() FROM locked WHERE jobs.id = locked.id RETURNING jobs.id
    )
    SELECT place, next_attempt_at, id, id IN (SELECT id FROM marked) AS marked, turn, NULL AS found
    FROM chosen
    UNION ALL
    SELECT place, NULL, NULL, NULL, NULL, sum(found)
    FROM (
        SELECT place, most, 0 AS found
        FROM unnest(CAST(:most AS int[])) WITH ORDINALITY AS a(most, place) WHERE (SELECT locked FROM mine)
        UNION ALL
        SELECT place, 0, 1 FROM candidate
    ) each
    GROUP BY place HAVING sum(found) < max(most)
    ORDER BY turn
""")
"""Choose ``room`` due jobs of the given tenants and priorities of a queue in fair order; mark those of them as
published that are ``rows`` of batches, or those that are single jobs.

A tenant's next job goes by the jobs it has published for its weight, then by what the tenant was ``served``. Returns
the chosen jobs in that order, each with the ``place`` (from 1) of its tenant and priority among those given and whether
it was ``marked``; and after them the places where fewer than ``most`` jobs were ``found``. Nothing is returned while
another relay is at it.
"""

UNDISPATCH_STALE = text("""
    WITH stale AS (
        SELECT id FROM jobs
        WHERE queue = :queue AND status = 'queued' AND finished_at IS NULL
          AND dispatched_at >= :since AND dispatched_at < now() - make_interval(secs => :stale_s)
        ORDER BY id
        FOR UPDATE SKIP LOCKED
    )
    UPDATE jobs SET dispatched_at = NULL FROM stale WHERE jobs.id = stale.id
    RETURNING jobs.id
""")
"""Make published jobs due again that nobody claimed or holds a message of; none were published before ``since``."""
