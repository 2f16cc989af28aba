"""Booking what a lost attempt may have cost, before its job is taken from the worker that held it.

A provider may have answered, and charged, a call whose worker then died: nobody knows. So the worst case of the attempt
is booked as an estimate, bounded by what the job has reserved, and a late report replaces it (FINISH). The job stays
in progress, for the rescue to take back; it reserves as much again for its next attempt, or ends here as
``budget_exceeded`` where its budgets have no room. Attempts at LLMs that cost nothing are passed over.

One transaction: SELECT_UNBOOKED, LOCK_PERIODS_OF_JOBS, BOOK_LOST, ADD_RESERVED.
"""

from sqlalchemy import text

from models.attempt import add_usage
from models.batch import COUNT
from models.budget import MOVED
from models.lifecycle import IN_PROGRESS
from models.usage import entry_id

_IS_LOST = """(NOT EXISTS (SELECT FROM processes p WHERE p.id = j.worker_id)
               OR j.expires_at <= now() - make_interval(secs => :grace_s))"""

SELECT_UNBOOKED = text(f"""
    WITH lost AS MATERIALIZED (
        SELECT j.id, j.attempt_id, j.reserved_usd, j.request FROM jobs j
        WHERE :orphans AND j.status = 'in_progress' AND NOT EXISTS (SELECT FROM processes p WHERE p.id = j.worker_id)
          AND (CAST(:after AS uuid) IS NULL OR j.id > :after)
        UNION ALL
        SELECT j.id, j.attempt_id, j.reserved_usd, j.request FROM jobs j
        WHERE j.status IN ('queued', 'in_progress') AND j.{IN_PROGRESS}
          AND j.expires_at > '-infinity' AND j.expires_at <= now() - make_interval(secs => :grace_s)
          AND NOT (:orphans AND NOT EXISTS (SELECT FROM processes p WHERE p.id = j.worker_id))
          AND (CAST(:after AS uuid) IS NULL OR j.id > :after)
    )
    SELECT l.id AS job_id, a.id AS attempt_id, a.llm, a.started_at, l.reserved_usd, l.request
    FROM lost l JOIN attempts a ON a.id = l.attempt_id
    WHERE NOT a.usage_estimated AND a.llm <> ALL(CAST(:free AS text[]))
    ORDER BY l.id LIMIT :limit
""")
"""Jobs in progress whose process is gone, or which are ``grace_s`` past their expiry, and whose attempts may have cost
something that is not booked, after a job ``after``; ``free``: the LLMs that cost nothing. Without ``orphans`` only the
latter: the search for the others reads what every worker ran before, too, while a long transaction is open."""

BOOK_LOST = text(f"""
    WITH estimate AS (
        SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS r(
            job_id uuid, attempt_id uuid, input_tokens bigint, output_tokens bigint, input_price numeric,
            output_price numeric, cost_usd numeric, topped_up boolean)
    ), verdict AS (
        SELECT e.*, j.tenant_id, j.api_key_id, j.team, j.end_user, j.budget_periods, j.reserved_usd, j.batch_id,
               j.batch_copies,
               CASE WHEN e.topped_up THEN 'in_progress'
                    WHEN j.cancel_requested_at IS NOT NULL THEN 'cancelled'
                    WHEN j.expires_at <= now() THEN 'expired'
                    ELSE 'failed' END AS target
        FROM estimate e JOIN jobs j ON j.id = e.job_id
        WHERE j.status = 'in_progress' AND j.attempt_id = e.attempt_id AND {_IS_LOST}
        ORDER BY j.id
        FOR UPDATE OF j
    ), marked AS (
        UPDATE attempts a
        SET usage_estimated = true, input_tokens = v.input_tokens, output_tokens = v.output_tokens,
            cost_usd = v.cost_usd, outcome = CASE v.target WHEN 'in_progress' THEN a.outcome ELSE 'lost' END,
            finished_at = CASE v.target WHEN 'in_progress' THEN a.finished_at ELSE now() END
        FROM verdict v WHERE a.id = v.attempt_id AND a.duration_ms IS NULL AND NOT a.usage_estimated
        RETURNING a.id, a.llm
    ), booking AS (
        SELECT v.*, m.llm FROM verdict v JOIN marked m ON m.id = v.attempt_id
    ), booked AS (
        INSERT INTO ledger_entries (attempt_id, kind, lost_attempt_id, job_id, tenant_id, api_key_id, team, end_user,
                                    llm, input_tokens, output_tokens, input_price, output_price, cost_usd)
        SELECT {entry_id("estimate", "v.attempt_id")}, 'estimate', v.attempt_id, v.job_id, v.tenant_id, v.api_key_id,
               v.team, v.end_user, v.llm, v.input_tokens, v.output_tokens, v.input_price, v.output_price, v.cost_usd
        FROM booking v
    ), settled AS (
        SELECT v.budget_periods, v.cost_usd AS spent,
               CASE v.target WHEN 'in_progress' THEN v.cost_usd ELSE v.reserved_usd END AS released
        FROM booking v
    ), moved AS ({MOVED}), counting AS (
        SELECT v.batch_id, 0 AS completed, {
    ", ".join(
        f"CASE v.target WHEN '{status}' THEN 1 + coalesce(v.batch_copies, 0) ELSE 0 END AS {name}"
        for status, name in (
            ("failed", "failed"),
            ("cancelled", "cancelled"),
            ("expired", "expired"),
            ("failed", "unpaid"),
        )
    )
}, v.input_tokens, v.output_tokens, 0 AS cached_input_tokens, 0 AS reasoning_tokens, v.cost_usd
        FROM booking v WHERE v.batch_id IS NOT NULL
    ), counted AS ({COUNT})
    UPDATE jobs j
    SET {add_usage("v.input_tokens", "v.output_tokens", "v.cost_usd")},
        status = v.target,
        finished_at = CASE v.target WHEN 'in_progress' THEN j.finished_at ELSE now() END,
        error = CASE v.target WHEN 'failed' THEN CAST(:no_money AS jsonb)
                              WHEN 'expired' THEN CAST(:expired AS jsonb) ELSE j.error END,
        rescues = CASE v.target WHEN 'in_progress' THEN j.rescues ELSE j.rescues + 1 END,
        worker_id = CASE v.target WHEN 'in_progress' THEN j.worker_id END,
        attempt_id = CASE v.target WHEN 'in_progress' THEN j.attempt_id END
    FROM booking v WHERE j.id = v.job_id
    RETURNING j.id, j.status
""")
"""Book the worst cases of lost attempts; those jobs end whose budgets have no room for another (not ``topped_up``),
and then release their reservations."""

GIVE_UP_BOOKING = text("UPDATE attempts SET usage_estimated = true WHERE id = :attempt_id")
"""Let a job be taken back though Postgres refuses to book what its attempt may have cost."""
