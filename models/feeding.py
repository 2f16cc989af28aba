"""Feeding: rows of batches become jobs, a few at a time, as the relay has room for them.

A feed is one statement for one batch. It goes on from where the batch was when the relay looked (``next_row``,
``round``, ``last_round``): if anything has moved the batch since, it finds nothing to do. So several relays, and a
statement of which nobody knows whether it was done, feed every row once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text

from models.batch import BATCH_PRIORITY

SELECT_FED = text("""
    SELECT b.id, b.tenant_id, t.weight, b.priority, b.next_row, b.round, b.last_round, b.max_parallel, b.dedupe,
           ARRAY(SELECT DISTINCT way ->> 'queue' FROM jsonb_array_elements(b.routes) AS way) AS queues,
           u.unfinished, u.unpublished, u.first_job
    FROM batches b
    JOIN tenants t ON t.id = b.tenant_id
    LEFT JOIN unnest(CAST(:known AS uuid[]), CAST(:first_jobs AS uuid[])) AS known(id, first_job) ON known.id = b.id
    CROSS JOIN LATERAL (
        SELECT count(*) AS unfinished,
               count(*) FILTER (WHERE status = 'queued' AND dispatched_at IS NULL AND next_attempt_at <= now())
                   AS unpublished,
               CAST(min(CAST(id AS text)) AS uuid) AS first_job
        FROM jobs WHERE batch_id = b.id AND batch_id IS NOT NULL AND finished_at IS NULL
          AND id >= coalesce(known.first_job, '00000000-0000-0000-0000-000000000000')
    ) u
    WHERE b.status = 'in_progress' AND b.expires_at > now() AND (b.next_row <= b.total OR b.round < b.last_round)
    ORDER BY b.id
""")
"""The batches that have rows to feed, with their unfinished jobs, those of them that are due and not published, and the
first of them. Of a batch that is ``known``, jobs before ``first_jobs`` are not looked at: while a long transaction is
open, the index has entries of all that have finished since."""

SELECT_CAPACITY = text("""
    SELECT q.queue, coalesce(sum(p.capacity), 0) AS capacity
    FROM unnest(CAST(:queues AS text[])) AS q(queue)
    LEFT JOIN processes p ON p.role = 'worker' AND q.queue = ANY(p.queues) AND p.lease_expires_at > now()
    GROUP BY q.queue
""")
"""What the live workers of each queue keep in flight."""

FEED = text(f"""
    WITH RECURSIVE b AS MATERIALIZED (
        SELECT b.*, CASE WHEN b.next_row > b.total THEN b.round + 1 ELSE b.round END AS now_round,
               CASE WHEN b.next_row > b.total THEN 1 ELSE b.next_row END AS now_row
        FROM batches b
        WHERE b.id = :id AND b.status = 'in_progress' AND b.next_row = :next_row AND b.round = :round
          AND b.last_round = :last_round AND (b.next_row <= b.total OR b.round < b.last_round)
        FOR NO KEY UPDATE SKIP LOCKED
    ), way AS MATERIALIZED (
        SELECT w.place - 1 AS place, w.way ->> 'model' AS model, w.way ->> 'tier' AS tier, w.way ->> 'queue' AS queue,
               w.way -> 'routing' AS routing,
               ARRAY(SELECT jsonb_array_elements_text(w.way -> 'route')) AS route
        FROM b, jsonb_array_elements(b.routes) WITH ORDINALITY AS w(way, place)
    ), again AS (
        SELECT 1 AS place, (SELECT min(r.number) FROM batch_rows r
                            WHERE r.batch_id = b.id AND r.round > 0 AND r.round = b.now_round
                              AND r.number >= b.now_row) AS number
        FROM b WHERE b.now_round > 0
        UNION ALL
        SELECT a.place + 1, (SELECT min(r.number) FROM batch_rows r
                             WHERE r.batch_id = b.id AND r.round > 0 AND r.round = b.now_round
                               AND r.number > a.number)
        FROM again a, b WHERE a.number IS NOT NULL AND a.place < :rows
    ), taken AS MATERIALIZED (
        SELECT r.*, row_number() OVER (ORDER BY r.number) AS place
        FROM (
            SELECT r.* FROM b JOIN batch_rows r ON r.batch_id = b.id
            WHERE b.now_round = 0 AND r.number >= b.now_row AND r.number < b.now_row + :span AND r.round = 0
              AND r.same_as IS NULL AND r.route >= 0
            UNION ALL
            SELECT r.* FROM b CROSS JOIN again a CROSS JOIN LATERAL (
                SELECT * FROM batch_rows WHERE batch_id = b.id AND number = a.number LIMIT 1) r
        ) r
        ORDER BY r.number LIMIT :rows
    ), inserted AS (
        INSERT INTO jobs (id, tenant_id, api_key_id, kind, priority, model, route, routing, tier, queue, request,
                          reserved_usd, budget_periods, end_user, team, labels, expires_at,
                          batch_id, batch_row, batch_round, batch_copies)
        SELECT new.id, b.tenant_id, b.api_key_id,
               CASE b.endpoint WHEN '/v1/embeddings' THEN 'embedding' ELSE 'generation' END,
               {BATCH_PRIORITY} + b.priority, way.model, way.route, way.routing,
               way.tier, way.queue,
               CASE WHEN t.request IS NOT NULL THEN b.request || t.request
                    ELSE b.request || jsonb_build_object('messages', coalesce(b.request -> 'messages', '[]')
                         || jsonb_build_array(jsonb_build_object('role', 'user', 'content', rendered.prompt))) END,
               t.reserved_usd, b.budget_periods, b.end_user, b.team, b.labels, b.expires_at,
               b.id, t.number, b.now_round,
               CASE WHEN b.dedupe THEN (SELECT nullif(count(*), 0) FROM batch_rows c
                                        WHERE c.batch_id = b.id AND c.same_as IS NOT NULL AND c.same_as = t.number) END
        FROM b
        CROSS JOIN taken t
        JOIN way ON way.place = t.route
        JOIN unnest(CAST(:ids AS uuid[])) WITH ORDINALITY AS new(id, place) ON new.place = t.place
        CROSS JOIN LATERAL (
            SELECT string_agg(coalesce(part ->> 'text', t.cells[(part ->> 'column')::int + 1]), '' ORDER BY at)
                   AS prompt
            FROM jsonb_array_elements(b.template) WITH ORDINALITY AS parts(part, at)
        ) rendered
        ORDER BY t.number
    )
    UPDATE batches
    SET round = b.now_round,
        next_row = least(b.total + 1, CASE WHEN fed.rows = :rows THEN fed.last + 1
                                           WHEN b.now_round = 0 THEN b.now_row + :span
                                           ELSE b.total + 1 END),
        reserved_usd = batches.reserved_usd - fed.reserved
    FROM b, (SELECT count(*) AS rows, max(number) AS last, coalesce(sum(reserved_usd), 0) AS reserved FROM taken) fed
    WHERE batches.id = b.id
    RETURNING fed.rows, batches.next_row, batches.round, batches.next_row > batches.total AS passed
""")
"""Make jobs of up to ``rows`` further rows of a batch, with ``ids`` (as many) for them, and look at no more than
``span`` rows to find them; returns how many there were and where the batch is now, or no row if the batch is not where
it was or is being changed by someone else.

Rows are found by range or one by one, for a scan in order with a LIMIT is not what Postgres plans for a table whose
million rows it has not counted yet: it would sort all of them, every time."""


@dataclass(frozen=True, slots=True)
class Hungry:
    """A batch that has rows to feed: what decides how many it gets now."""

    id: UUID
    priority: int
    unfinished: int
    unpublished: int
    most: int
    """Of its jobs that may be unfinished."""

    @property
    def free(self) -> int:
        """How many more of its jobs may be unfinished."""
        return max(0, self.most - self.unfinished)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A tenant that has batches with rows to feed: its unpublished jobs (``held``), and how many more it may get."""

    held: int
    free: int
    weight: int = 1

    def share(self, level: int) -> int:
        """What it gets of a buffer where a weight of 1 gets ``level``."""
        return min(self.held + self.free, level * self.weight)


def share_buffer(tenants: Sequence[Waiting], buffer: int) -> list[int]:
    """How many jobs of each tenant may be unpublished so that a queue's ``buffer`` is shared max-min by weight.

    A tenant that holds more than its share keeps it, and takes nothing of the others' shares. What cannot be divided
    goes to those that come first, and last to those that hold more than their share already.
    """
    low, high = 0, buffer
    while low < high:
        level = (low + high + 1) // 2
        low, high = (level, high) if sum(t.share(level) for t in tenants) <= buffer else (low, level - 1)
    shares = [t.share(low) for t in tenants]
    nexts = [t.share(low + 1) for t in tenants]
    left = buffer - sum(shares)
    left -= sum(
        min(t.held, more) - share for t, share, more in zip(tenants, shares, nexts, strict=True) if t.held > share
    )
    for place, (tenant, share, more) in enumerate(zip(tenants, shares, nexts, strict=True)):
        if left > 0 and tenant.held <= share:
            shares[place] += min(left, more - share)
            left -= shares[place] - share
    for place, (tenant, share, more) in enumerate(zip(tenants, shares, nexts, strict=True)):
        if left > 0 and share < tenant.held < more:
            shares[place] = min(more, tenant.held + left)
            left -= shares[place] - tenant.held
    return shares


def share_out(batches: Sequence[Hungry], buffer: int) -> Mapping[UUID, int]:
    """How many rows each batch of one tenant and queue gets, so that ``buffer`` jobs wait to be published.

    Batches of one priority share what those of higher priority leave, a place at a time to the one that has the
    fewest unfinished jobs.
    """
    shares: dict[UUID, int] = {}
    waiting = 0
    for priority in sorted({batch.priority for batch in batches}):
        level = [batch for batch in batches if batch.priority == priority]
        waiting += sum(batch.unpublished for batch in level)
        given = _level(level, buffer - waiting)
        shares |= given
        waiting += sum(given.values())
    return shares


def _level(batches: Sequence[Hungry], room: int) -> dict[UUID, int]:
    """Max-min: fill the emptiest batches up to a common level that ``room`` places reach."""
    if room <= 0:
        return {}
    low, high = 0, max(batch.unfinished for batch in batches) + room
    while low < high:
        level = (low + high + 1) // 2
        wanted = sum(min(batch.free, max(0, level - batch.unfinished)) for batch in batches)
        low, high = (level, high) if wanted <= room else (low, level - 1)
    shares = {batch.id: min(batch.free, max(0, low - batch.unfinished)) for batch in batches}
    left = room - sum(shares.values())
    for batch in batches:
        if left > 0 and batch.unfinished + shares[batch.id] == low and shares[batch.id] < batch.free:
            shares[batch.id] += 1
            left -= 1
    return {batch_id: share for batch_id, share in shares.items() if share}
