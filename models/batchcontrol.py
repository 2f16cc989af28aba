"""What is done to a batch as a whole: paused, resumed, cancelled, run again, ended.

Each is one transaction that locks the batch's line first, then budget periods, jobs and counts, each in the order of
their ids (:mod:`models.attempt`); statements that end jobs never lock a batch. The next statement of such a
transaction sees all that a feed made before the lock. ``:writer`` is whose line of the counts is written.
"""

from sqlalchemy import text

from models.batch import COUNT, ENDED, count_ended
from models.budget import MOVED
from models.lifecycle import QUEUED

_UNFINISHED = "batch_id = :id AND batch_id IS NOT NULL AND finished_at IS NULL"

LOCK_BATCH = text("""
    SELECT id, tenant_id, api_key_id, team, end_user, status, pause_reason, reserved_usd, budget_periods, round,
           last_round, next_row, total, endings
    FROM batches WHERE id = :id AND (CAST(:tenant_id AS uuid) IS NULL OR tenant_id = :tenant_id)
    FOR NO KEY UPDATE
""")
"""Lock a batch, of a tenant's if one is given."""

PAUSE = text("""
    UPDATE batches SET status = 'paused', pause_reason = :reason, paused_at = coalesce(paused_at, now())
    WHERE id = :id
""")

PARK = text(f"""
    WITH waiting AS (
        SELECT id FROM jobs WHERE {_UNFINISHED} AND {QUEUED}
        ORDER BY id FOR UPDATE
    )
    UPDATE jobs SET dispatched_at = NULL, next_attempt_at = expires_at FROM waiting WHERE jobs.id = waiting.id
""")
"""Keep the jobs of a batch that nobody has claimed from being claimed; they are due again at their deadline."""

_PARKED = f"""
        SELECT id FROM jobs WHERE {_UNFINISHED} AND {QUEUED} AND dispatched_at IS NULL AND next_attempt_at = expires_at
        ORDER BY id FOR UPDATE"""

LOCK_PARKED = text(f"SELECT count(*) FROM ({_PARKED}) parked")
"""Lock what UNPARK is going to change."""

UNPARK = text(f"""
    WITH waiting AS ({_PARKED}
    )
    UPDATE jobs SET next_attempt_at = now() FROM waiting WHERE jobs.id = waiting.id
""")

RESUME = text("UPDATE batches SET status = 'in_progress', pause_reason = NULL, paused_at = NULL WHERE id = :id")

_RELEASED = f"""
    released AS MATERIALIZED (
        SELECT id, reserved_usd, budget_periods FROM batches WHERE id = :id
    ), settled AS (
        SELECT budget_periods, reserved_usd AS released, 0 AS spent FROM released
    ), moved AS ({MOVED})"""
"""SQL: gives back what a batch, which the transaction has locked, holds for rows that will not run."""

STOP = text(f"""
    WITH {_RELEASED}
    UPDATE batches SET status = :status, reserved_usd = 0, pause_reason = NULL, paused_at = NULL,
        finalizing_at = CASE :status WHEN 'finalizing' THEN now() END,
        cancelling_at = CASE :status WHEN 'cancelling' THEN now() END
    WHERE id = :id
""")
"""Let no further row of a batch run: it is ``finalizing`` or ``cancelling`` until its jobs have ended."""

CANCEL_JOBS = text(f"""
    WITH live AS (
        SELECT id FROM jobs WHERE {_UNFINISHED} ORDER BY id FOR UPDATE
    ), asked AS (
        UPDATE jobs j
        SET cancel_requested_at = coalesce(cancel_requested_at, now()),
            status = CASE status WHEN 'queued' THEN 'cancelled' ELSE status END,
            finished_at = CASE status WHEN 'queued' THEN now() END
        FROM live WHERE j.id = live.id
        RETURNING j.id, status, reserved_usd, budget_periods, batch_id, batch_copies
    ), settled AS (
        SELECT budget_periods, reserved_usd AS released, 0 AS spent FROM asked WHERE status = 'cancelled'
    ), moved AS ({MOVED}), {count_ended("asked", "e.status = 'cancelled'")}
    SELECT id, status FROM asked
""")
"""As ``models.job.CANCEL_JOB``, for all unfinished jobs of a batch."""

SELECT_LIVE = text(f"""
    SELECT b.id, b.tenant_id, b.status, b.pause_reason, b.last_round, b.expires_at <= now() AS late,
           b.next_row > b.total AND b.round = b.last_round AS fed, n.unpaid, b.total - n.ended AS rest,
           b.status IN ('cancelling', 'finalizing')
           AND EXISTS (SELECT FROM jobs WHERE batch_id = b.id AND batch_id IS NOT NULL
                       AND finished_at IS NULL) AS running,
           (SELECT min(p.limit_usd - p.spent_usd - p.reserved_usd - coalesce(m.delta, 0))
            FROM budget_periods p
            LEFT JOIN LATERAL (SELECT sum(reserved_delta + spent_delta) AS delta
                               FROM budget_movements WHERE period_id = p.id) m ON true
            WHERE p.id = ANY(b.budget_periods)) AS room
    FROM batches b
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(completed + failed + cancelled + expired), 0) AS ended, coalesce(sum(unpaid), 0) AS unpaid
        FROM batch_counts WHERE batch_id = b.id
    ) n
    WHERE b.status NOT IN ({", ".join(map(repr, ENDED))})
    ORDER BY b.id
""")
"""The batches that have not ended: how many rows have no ending yet (``rest``), how many ended for want of money
(``unpaid``), whether jobs of one that is being stopped are unfinished (``running``), and what is left in the fullest
budget that they reserved in (``room``, null without one)."""

_TIMES = ", ".join(
    f"{status}_at = CASE :status WHEN '{status}' THEN now() END" for status in ("completed", "expired", "cancelled")
)

END = text(f"""
    WITH b AS MATERIALIZED (
        SELECT * FROM batches WHERE id = :id
    ), n AS MATERIALIZED (
        SELECT coalesce(sum(c.completed), 0) AS completed, coalesce(sum(c.failed), 0) AS failed,
               coalesce(sum(c.cancelled), 0) AS cancelled, coalesce(sum(c.expired), 0) AS expired
        FROM batch_counts c WHERE c.batch_id = :id
    ), rest AS (
        SELECT b.total - n.completed - n.failed - n.cancelled - n.expired AS number FROM b, n
    ), counting AS (
        SELECT b.id AS batch_id, 0 AS completed, 0 AS failed, 0 AS unpaid, 0 AS input_tokens, 0 AS output_tokens,
               0 AS cached_input_tokens, 0 AS reasoning_tokens, 0 AS cost_usd,
               CASE :status WHEN 'cancelled' THEN rest.number ELSE 0 END AS cancelled,
               CASE :status WHEN 'expired' THEN rest.number ELSE 0 END AS expired
        FROM b, rest WHERE rest.number > 0
    ), counted AS ({COUNT}), {_RELEASED}, output AS (
        INSERT INTO files (id, tenant_id, purpose, filename, bytes, content, batch_id, expires_at)
        SELECT f.id, b.tenant_id, 'batch_output', 'batch_' || replace(b.id::text, '-', '') || f.suffix, 0, f.content,
               b.id, now() + make_interval(secs => b.output_expires_s)
        FROM b, n, (VALUES (CAST(:output_file_id AS uuid), '_output.jsonl', 'batch_output'),
                           (CAST(:error_file_id AS uuid), '_error.jsonl', 'batch_errors')) AS f(id, suffix, content)
        WHERE CASE f.content WHEN 'batch_output' THEN b.output_file_id IS NULL AND n.completed > 0
                             ELSE b.error_file_id IS NULL AND n.completed < b.total END
        RETURNING id, content
    ), outdated AS (
        UPDATE files SET bytes = 0 FROM b WHERE files.id IN (b.output_file_id, b.error_file_id) AND bytes > 0
    ), told AS (
        INSERT INTO events (id, tenant_id, type, payload, once_key)
        SELECT gen_random_uuid(), b.tenant_id, 'batch.' || :status,
               jsonb_build_object('batch_id', 'batch_' || replace(b.id::text, '-', ''), 'status', :status,
                   'total', b.total, 'completed', n.completed, 'failed', n.failed,
                   'cancelled', n.cancelled + CASE :status WHEN 'cancelled' THEN rest.number ELSE 0 END,
                   'expired', n.expired + CASE :status WHEN 'expired' THEN rest.number ELSE 0 END),
               'batch.' || :status || ':' || b.id || ':' || b.last_round
        FROM b, n, rest
        ON CONFLICT (once_key) DO NOTHING
    )
    UPDATE batches
    SET status = :status, reserved_usd = 0, pause_reason = NULL, paused_at = NULL, {_TIMES},
        finalizing_at = coalesce(batches.finalizing_at, CASE :status WHEN 'completed' THEN now() END),
        output_file_id = coalesce(batches.output_file_id, (SELECT id FROM output WHERE content = 'batch_output')),
        error_file_id = coalesce(batches.error_file_id, (SELECT id FROM output WHERE content = 'batch_errors')),
        endings = batches.endings || array_fill(CAST(:status AS text),
                      ARRAY[greatest(0, batches.last_round + 1 - cardinality(batches.endings))])
    FROM b WHERE batches.id = b.id
    RETURNING batches.id, batches.output_file_id, batches.error_file_id
""")
"""End a batch none of whose jobs is unfinished: rows that never ran are counted with ``status``, what is reserved is
given back, its files are there, with sizes to be measured, and an event tells of it."""

SET_FILE_SIZE = text("""
    UPDATE files SET bytes = :bytes
    FROM batches b
    WHERE files.batch_id = :batch_id AND files.content = :content AND files.bytes >= 0
      AND b.id = :batch_id AND b.last_round = :last_round AND b.status IN ('completed', 'expired', 'cancelled')
""")
"""The size of a batch's output or error file, unless the batch has run again since it was measured."""

TELL = text("""
    INSERT INTO events (id, tenant_id, type, payload)
    SELECT gen_random_uuid(), tenant_id, 'batch.' || :what,
           jsonb_build_object('batch_id', 'batch_' || replace(id::text, '-', ''), 'status', status,
                              'pause_reason', pause_reason)
    FROM batches WHERE id = :id
""")
"""Record the event that a batch was paused or resumed."""

_WEIGHT = """CASE WHEN b.dedupe THEN 1 + (SELECT count(*) FROM batch_rows c WHERE c.batch_id = b.id
                         AND c.same_as IS NOT NULL AND c.same_as = r.number) ELSE 1 END AS weight"""

_TO_RUN_AGAIN = """
    b AS MATERIALIZED (
        SELECT * FROM batches WHERE id = :id
    ), ran AS (
        SELECT r.number, j.status, coalesce(j.error ->> 'code', '') = 'budget_exceeded' AS unpaid
        FROM b JOIN jobs j ON j.batch_id = b.id AND j.batch_id IS NOT NULL AND j.finished_at IS NOT NULL
             JOIN batch_rows r ON r.batch_id = b.id AND r.number = j.batch_row AND r.round = j.batch_round
        WHERE j.status = ANY(CAST(:statuses AS text[])) AND j.status IN ('failed', 'cancelled', 'expired')
          AND (NOT :unpaid OR j.error ->> 'code' = 'budget_exceeded')
    ), left_behind AS (
        SELECT r.number, b.endings[r.round + 1] AS status, false AS unpaid
        FROM b JOIN batch_rows r ON r.batch_id = b.id
        WHERE b.last_round > 0 AND NOT :unpaid AND r.same_as IS NULL AND r.route >= 0
          AND (r.round, r.number) < (b.round, b.next_row)
          AND b.endings[r.round + 1] = ANY(CAST(:statuses AS text[]))
          AND NOT EXISTS (SELECT FROM jobs j WHERE j.batch_id = b.id AND j.batch_id IS NOT NULL
                          AND j.batch_row = r.number AND j.batch_round = r.round)
    ), again AS (
        SELECT * FROM ran UNION ALL SELECT * FROM left_behind
    )"""
"""SQL: the rows that ended with one of ``statuses``; with ``unpaid``, only those whose budget was short."""

_SUM_OF = """
    SELECT status, coalesce(sum(weight), 0) AS rows, coalesce(sum(weight) FILTER (WHERE unpaid), 0) AS unpaid,
           coalesce(sum(reserved_usd), 0) AS reserved_usd
    FROM {source} GROUP BY status"""

SUM_MARKED = text(f"""
    WITH {_TO_RUN_AGAIN}, found AS (
        SELECT r.reserved_usd, again.status, again.unpaid, {_WEIGHT}
        FROM b, again JOIN batch_rows r ON r.batch_id = :id AND r.number = again.number
    )
    {_SUM_OF.format(source="found")}
""")
"""What MARK would mark, and what it would reserve; nothing is written."""

MARK = text(f"""
    WITH {_TO_RUN_AGAIN}, marked AS (
        UPDATE batch_rows r SET round = b.last_round + 1
        FROM b, again
        WHERE r.batch_id = b.id AND r.number = again.number
        RETURNING r.reserved_usd, again.status, again.unpaid, {_WEIGHT}
    )
    {_SUM_OF.format(source="marked")}
""")
"""Give the rows that ended with one of ``statuses`` (with ``unpaid``: only those whose budget was short) the batch's
next round; how many rows that makes, with those that share their answers, and what they reserve."""

UNFED = text(f"""
    SELECT b.endings[b.round + 1] AS status, coalesce(sum(u.weight), 0) AS rows, 0 AS unpaid,
           coalesce(sum(u.reserved_usd), 0) AS reserved_usd
    FROM batches b
    CROSS JOIN LATERAL (
        SELECT r.reserved_usd, {_WEIGHT} FROM batch_rows r
        WHERE r.batch_id = b.id AND r.same_as IS NULL AND r.route >= 0 AND r.number <= b.total
          AND (r.round > b.round OR r.round = b.round AND r.number >= b.next_row)
    ) u
    WHERE b.id = :id
    GROUP BY b.id
""")
"""The rows of an ended batch that its rounds had not come to: as MARK."""

AGAIN = text(f"""
    WITH counting AS (
        SELECT id AS batch_id, 0 AS completed, -CAST(:failed AS int) AS failed, -CAST(:cancelled AS int) AS cancelled,
               -CAST(:expired AS int) AS expired, -CAST(:unpaid AS int) AS unpaid, 0 AS input_tokens,
               0 AS output_tokens, 0 AS cached_input_tokens, 0 AS reasoning_tokens, 0 AS cost_usd
        FROM batches WHERE id = :id
    ), counted AS ({COUNT})
    UPDATE batches
    SET status = CASE WHEN status = 'paused' THEN status ELSE 'in_progress' END,
        last_round = CASE WHEN :marked THEN last_round + 1 ELSE last_round END,
        round = CASE WHEN :goes_on THEN round ELSE last_round END,
        next_row = CASE WHEN :goes_on THEN next_row ELSE total + 1 END,
        endings = CASE WHEN :goes_on THEN endings[1:round] ELSE endings END,
        reserved_usd = :reserved_usd, budget_periods = CAST(:budget_periods AS bigint[]),
        completed_at = NULL, expired_at = NULL, cancelled_at = NULL,
        finalizing_at = NULL, cancelling_at = NULL,
        expires_at = CASE WHEN :renew THEN now() + CAST(completion_window AS interval) ELSE expires_at END
    WHERE id = :id
""")
"""Take marked rows, and with ``goes_on`` those that the rounds had not come to, out of the counts and into the batch
again; ``renew`` gives it a fresh deadline."""
