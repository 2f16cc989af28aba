"""Attempts: executions of jobs on LLMs, and the statements that claim, finish, release and rescue them.

Each statement is one transaction. An attempt's id is the fencing token of its job: a result is
accepted only while ``jobs.attempt_id`` still names the attempt that brings it.

Every statement and transaction locks in this order, here and elsewhere: a process, a batch, budget periods by id, jobs
by id, attempts (each only under the lock of its job), counts by batch. What may be left for later skips locked rows.
So no two can deadlock. Movements of budgets lock nothing.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, SmallInteger, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Cost, Json, PrimaryId
from models.batch import COUNT, count_ended
from models.budget import MOVED
from models.errors import FailureCode
from models.job import IS_BOOKED
from models.lifecycle import IN_PROGRESS, QUEUED
from models.storable import MAX_INT
from models.usage import entry_id


class Attempt(Base):
    """One execution of a job on one LLM, recorded before the provider is called.

    ``outcome`` is null while it runs. ``duration_ms`` is null until its worker reports: an attempt may be
    ``lost`` and still report later what it used. The worst case of a lost attempt is booked as if it had been used
    (``usage_estimated``, :mod:`models.lost`); a late report replaces it, and ``estimated_*`` keep what it was.
    ``adapted`` lists what was changed in the request, for the LLM or by ``adjust``; null for nothing.
    """

    __tablename__ = "attempts"
    __table_args__ = (UniqueConstraint("job_id", "number"),)

    id: Mapped[PrimaryId]
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    number: Mapped[int] = mapped_column(SmallInteger)
    llm: Mapped[str]
    provider: Mapped[str]
    worker_id: Mapped[UUID]
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    error: Mapped[Json | None]
    duration_ms: Mapped[int | None]
    time_to_first_token_ms: Mapped[int | None]
    input_tokens: Mapped[int] = mapped_column(server_default="0")
    output_tokens: Mapped[int] = mapped_column(server_default="0")
    cached_input_tokens: Mapped[int] = mapped_column(server_default="0")
    reasoning_tokens: Mapped[int] = mapped_column(server_default="0")
    usage_estimated: Mapped[bool] = mapped_column(server_default="false")
    cost_usd: Mapped[Cost] = mapped_column(server_default="0")
    estimated_input_tokens: Mapped[int | None]
    estimated_output_tokens: Mapped[int | None]
    estimated_usd: Mapped[Cost | None]
    adapted: Mapped[Json | None]


DEATHS_IN_COMPANY = 2
"""Deaths of a process with several jobs in it after which a job of a local model is a suspect and runs alone. They
prove nothing against it: only its deaths alone count towards ``max_deliveries``."""

_IS_SUSPECT = f"j.rescues >= {DEATHS_IN_COMPANY} AND j.queue = ANY(CAST(:local_queues AS text[]))"

CLAIM = text(f"""
    WITH offered AS (
        SELECT j.id, r.attempt_id
        FROM (SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS r(job_id uuid, attempt_id uuid)
              WHERE EXISTS (SELECT FROM processes p WHERE p.id = :worker_id AND p.lease_expires_at > now())
              ORDER BY job_id) r
        CROSS JOIN LATERAL (
            SELECT id FROM jobs j
            WHERE id = r.job_id AND {QUEUED} AND next_attempt_at <= now() AND expires_at > now()
              AND NOT ({_IS_SUSPECT})
            FOR UPDATE
        ) j
    ), claimed AS (
        UPDATE jobs j
        SET status = 'in_progress', attempt_id = offered.attempt_id, worker_id = :worker_id,
            attempt_count = attempt_count + 1, started_at = coalesce(started_at, now())
        FROM offered WHERE j.id = offered.id
        RETURNING j.id AS job_id, j.tenant_id, j.attempt_id, j.attempt_count, j.route, j.route_index,
                  j.llm_failures, j.priority, j.request, cardinality(j.budget_periods) > 0 AS budgeted,
                  extract(epoch FROM j.expires_at - now())::float AS expires_in_s
    ), opened AS (
        INSERT INTO attempts (id, job_id, number, llm, provider, worker_id, started_at)
        SELECT attempt_id, job_id, attempt_count, route[route_index + 1],
               coalesce(CAST(:providers AS json) ->> route[route_index + 1], 'unknown'), :worker_id, now()
        FROM claimed
    )
    SELECT * FROM claimed
""").bindparams(local_queues=[])
"""Take jobs under the lease of a live worker and record their attempts.

``rows``: a JSON array of ``job_id`` and the ``attempt_id`` to give it; ``providers``: a JSON object from LLM to
provider. Rows are locked in the order of their ids, so that claims cannot deadlock; each is found by its id alone. A
job that is not queued, not due or expired is left out: a message that comes twice claims nothing. So is a suspect of
``local_queues``; a process that runs one job at a time has none.
"""

SELECT_SUSPECTS = text(f"""
    SELECT j.id, j.tenant_id FROM jobs j
    WHERE j.id = ANY(CAST(:job_ids AS uuid[])) AND {QUEUED} AND j.next_attempt_at <= now() AND {_IS_SUSPECT}
""")
"""Which jobs were not claimed because they must run alone."""

POSTPONE = text(f"""
    WITH waiting AS (
        SELECT id FROM jobs
        WHERE id = ANY(CAST(:job_ids AS uuid[])) AND {QUEUED} AND dispatched_at IS NOT NULL
        ORDER BY id FOR UPDATE
    )
    UPDATE jobs SET dispatched_at = NULL, next_attempt_at = now() + make_interval(secs => :delay_s)
    FROM waiting WHERE jobs.id = waiting.id
""")
"""Take jobs out of their queue's window that were published and not claimed; they are published again later."""

NO_MONEY = FailureCode.BUDGET_EXCEEDED.value


def add_usage(input_tokens: str, output_tokens: str, cost_usd: str) -> str:
    """SQL: adds what an attempt used to its job ``j``; the parameters are SQL of bigints and a numeric."""
    total = f"(j.cost_usd + coalesce(j.cost_rest_usd, 0) + {cost_usd})"
    return f"""input_tokens = least(j.input_tokens + {input_tokens}, {MAX_INT}),
        output_tokens = least(j.output_tokens + {output_tokens}, {MAX_INT}),
        cost_usd = round({total}, 6), cost_rest_usd = nullif({total} - round({total}, 6), 0)"""


def _ended_as(status: str, condition: str = "true", name: str = "") -> str:
    """SQL: how many rows of a batch the job of a verdict ``v`` ends with it."""
    return (
        f"CASE WHEN v.held AND v.target = '{status}' AND {condition} THEN 1 + coalesce(v.batch_copies, 0) ELSE 0 END"
        f" AS {name or status}"
    )


_ONE_BY_ONE = "r.outcome || '' = r.outcome"
"""SQL: true of every report. PostgreSQL expects few rows of it, and so looks up each attempt and job by its key: a plan
that was made while the tables were small, and is kept, would read them from end to end."""

FINISH = text(f"""
    WITH done AS (
        SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS r(
            attempt_id uuid, job_id uuid, tenant_id uuid, llm text, outcome text, error jsonb,
            duration_ms int, time_to_first_token_ms int, input_tokens int, output_tokens int,
            cached_input_tokens int, reasoning_tokens int, usage_estimated boolean,
            input_price numeric, output_price numeric, cached_input_price numeric, cost_usd numeric,
            status text, result jsonb, job_error jsonb, retry_in_s double precision, route_index smallint,
            llm_failures smallint, tier text, queue text, topped_up_usd numeric, adapted jsonb, adjusted jsonb,
            priority smallint)
        WHERE {_ONE_BY_ONE}
    ), verdict AS (
        SELECT d.*, j.api_key_id, j.team, j.end_user, j.budget_periods, j.reserved_usd, j.batch_id, j.batch_copies,
               j.status = 'in_progress' AND j.attempt_id = d.attempt_id AS held,
               CASE WHEN d.status = 'queued' AND j.cancel_requested_at IS NOT NULL THEN 'cancelled'
                    ELSE d.status END AS target
        FROM done d JOIN jobs j ON j.id = d.job_id
        ORDER BY j.id
        FOR UPDATE OF j
    ), reported AS (
        UPDATE attempts a
        SET outcome = coalesce(a.outcome, v.outcome), error = coalesce(a.error, v.error), finished_at = now(),
            duration_ms = v.duration_ms, time_to_first_token_ms = v.time_to_first_token_ms,
            input_tokens = v.input_tokens, output_tokens = v.output_tokens, cost_usd = v.cost_usd,
            cached_input_tokens = coalesce(v.cached_input_tokens, 0),
            reasoning_tokens = coalesce(v.reasoning_tokens, 0),
            usage_estimated = coalesce(v.usage_estimated, false), adapted = v.adapted,
            estimated_input_tokens = CASE WHEN a.usage_estimated THEN a.input_tokens END,
            estimated_output_tokens = CASE WHEN a.usage_estimated THEN a.output_tokens END,
            estimated_usd = CASE WHEN a.usage_estimated THEN a.cost_usd END
        FROM verdict v WHERE a.id = v.attempt_id AND a.duration_ms IS NULL
        RETURNING v.*, a.estimated_usd IS NOT NULL AS corrects,
                  v.cost_usd - coalesce(a.estimated_usd, 0) AS added_usd,
                  v.input_tokens - coalesce(a.estimated_input_tokens, 0)::bigint AS added_input_tokens,
                  v.output_tokens - coalesce(a.estimated_output_tokens, 0)::bigint AS added_output_tokens,
                  a.estimated_usd, a.estimated_input_tokens, a.estimated_output_tokens
    ), booked AS (
        INSERT INTO ledger_entries (attempt_id, job_id, tenant_id, api_key_id, team, end_user, llm, input_tokens,
                                    output_tokens, cached_input_tokens, input_price, output_price,
                                    cached_input_price, cost_usd)
        SELECT v.attempt_id, v.job_id, v.tenant_id, v.api_key_id, v.team, v.end_user, v.llm, v.input_tokens,
               v.output_tokens, coalesce(v.cached_input_tokens, 0), v.input_price, v.output_price,
               v.cached_input_price, v.cost_usd
        FROM reported v
        WHERE v.input_tokens > 0 OR v.output_tokens > 0
        ON CONFLICT (attempt_id) DO NOTHING
    ), reversed AS (
        INSERT INTO ledger_entries (attempt_id, kind, lost_attempt_id, job_id, tenant_id, api_key_id, team, end_user,
                                    llm, input_tokens, output_tokens, input_price, output_price, cost_usd)
        SELECT {entry_id("reversal", "v.attempt_id")}, 'reversal', v.attempt_id, v.job_id, v.tenant_id, v.api_key_id,
               v.team, v.end_user, v.llm, -v.estimated_input_tokens, -v.estimated_output_tokens, v.input_price,
               v.output_price, -v.estimated_usd
        FROM reported v
        WHERE v.corrects
        ON CONFLICT (attempt_id) DO NOTHING
    ), settled AS (
        SELECT v.budget_periods, v.added_usd AS spent,
               CASE WHEN v.held AND v.target <> 'queued' THEN v.reserved_usd ELSE 0 END
               + coalesce(v.topped_up_usd, 0) AS released
        FROM reported v
    ), moved AS ({MOVED}), counting AS (
        SELECT v.batch_id, {_ended_as("completed")}, {_ended_as("failed")}, {_ended_as("cancelled")},
               {_ended_as("expired")}, {_ended_as("failed", f"v.job_error ->> 'code' = '{NO_MONEY}'", "unpaid")},
               v.added_input_tokens AS input_tokens, v.added_output_tokens AS output_tokens,
               coalesce(v.cached_input_tokens, 0) AS cached_input_tokens,
               coalesce(v.reasoning_tokens, 0) AS reasoning_tokens, v.added_usd AS cost_usd
        FROM reported v WHERE v.batch_id IS NOT NULL
    ), counted AS ({COUNT})
    UPDATE jobs j
    SET {add_usage("v.added_input_tokens", "v.added_output_tokens", "v.added_usd")},
        status = CASE WHEN held THEN v.target ELSE j.status END,
        result = CASE WHEN held THEN v.result ELSE j.result END,
        error = CASE WHEN held AND v.target NOT IN ('queued', 'cancelled', 'completed')
                     THEN coalesce(v.job_error, v.error) ELSE j.error END,
        finished_at = CASE WHEN held AND v.target <> 'queued' THEN now() ELSE j.finished_at END,
        dispatched_at = CASE WHEN held AND v.target = 'queued' THEN NULL ELSE j.dispatched_at END,
        next_attempt_at = CASE WHEN held AND v.target = 'queued' THEN now() + make_interval(secs => v.retry_in_s)
                               ELSE j.next_attempt_at END,
        request = CASE WHEN held AND v.adjusted IS NOT NULL THEN j.request || v.adjusted ELSE j.request END,
        priority = CASE WHEN held THEN coalesce(v.priority, j.priority) ELSE j.priority END,
        route_index = CASE WHEN held THEN v.route_index ELSE j.route_index END,
        llm_failures = CASE WHEN held THEN v.llm_failures ELSE j.llm_failures END,
        tier = CASE WHEN held THEN coalesce(v.tier, j.tier) ELSE j.tier END,
        queue = CASE WHEN held THEN coalesce(v.queue, j.queue) ELSE j.queue END,
        worker_id = CASE WHEN held THEN NULL ELSE j.worker_id END,
        attempt_id = CASE WHEN held THEN NULL ELSE j.attempt_id END
    FROM reported v WHERE j.id = v.job_id
    RETURNING j.id, j.status, v.held, v.attempt_id
""")
"""Report attempts: close them, book what they used, and move their jobs to ``status``.

The job moves only if the attempt still holds it (``held`` in what returns); a report that comes too late books
its cost and changes nothing else. An attempt reports once: a statement that runs twice finds nothing to do.
What was booked as the worst case of an attempt that was given up is taken back by the same statement.
Budgets learn of it by movements: the cost is spent, and a job that ends releases what it reserved. A job that
goes back to the queue keeps its reservation, so whoever reports a cost with it has reserved that much more
before, ``topped_up_usd`` (:class:`workers.exchange.Exchange`). ``adjusted`` and ``priority`` are what the job's
further attempts are made with, where that is something else.
"""

RESCUE = text(f"""
    WITH orphan AS MATERIALIZED (
        SELECT j.id FROM jobs j
        WHERE j.status = 'in_progress' AND NOT EXISTS (SELECT FROM processes p WHERE p.id = j.worker_id)
          AND {IS_BOOKED}
    ), lost AS (
        SELECT j.id, j.attempt_id FROM jobs j
        WHERE j.id = ANY(ARRAY(SELECT id FROM orphan ORDER BY id LIMIT :limit)) AND {IN_PROGRESS}
          AND NOT EXISTS (SELECT FROM processes p WHERE p.id = j.worker_id)
          AND {IS_BOOKED}
        ORDER BY j.id
        FOR UPDATE OF j SKIP LOCKED
    ), closed AS (
        UPDATE attempts a SET outcome = 'lost', finished_at = now()
        FROM lost WHERE a.id = lost.attempt_id AND a.outcome IS NULL
    ), verdict AS (
        SELECT j.id,
               CASE WHEN j.cancel_requested_at IS NOT NULL THEN 'cancelled'
                    WHEN j.expires_at <= now() THEN 'expired'
                    WHEN j.rescues + 1 >= :max_deliveries
                         + CASE WHEN j.queue = ANY(CAST(:local_queues AS text[])) THEN {DEATHS_IN_COMPANY} ELSE 0 END
                         THEN 'failed'
                    ELSE 'queued' END AS target
        FROM jobs j JOIN lost ON lost.id = j.id
    ), taken_back AS (
        UPDATE jobs j
        SET status = v.target, rescues = j.rescues + 1, worker_id = NULL, attempt_id = NULL,
            dispatched_at = CASE v.target WHEN 'queued' THEN NULL ELSE j.dispatched_at END,
            next_attempt_at = CASE v.target WHEN 'queued'
                THEN now() + make_interval(secs => CASE j.rescues WHEN 0 THEN 0 ELSE least(30, power(2, j.rescues)) END)
                ELSE j.next_attempt_at END,
            finished_at = CASE v.target WHEN 'queued' THEN NULL ELSE now() END,
            error = CASE v.target WHEN 'failed' THEN CAST(:max_deliveries_error AS jsonb)
                                  WHEN 'expired' THEN CAST(:expired_error AS jsonb)
                                  ELSE j.error END
        FROM verdict v WHERE j.id = v.id
        RETURNING j.id, j.status, j.reserved_usd, j.budget_periods, j.batch_id, j.batch_copies
    ), settled AS (
        SELECT budget_periods, reserved_usd AS released, 0 AS spent FROM taken_back WHERE status <> 'queued'
    ), moved AS ({MOVED}), {count_ended("taken_back", "e.status <> 'queued'")}
    SELECT id, status FROM taken_back
""").bindparams(free=None, local_queues=[])
"""Take back the jobs whose worker is gone: to the queue at once the first time, then after a growing
pause, and to ``failed`` when ``max_deliveries`` workers vanished under them; of local models, when so many did after
those in company. Those that end release their reservations. What their attempts may have cost was booked before
(:mod:`models.lost`)."""

SELECT_HELD = text("""
    SELECT id AS job_id, attempt_id, cancel_requested_at IS NOT NULL AS cancel_requested
    FROM jobs WHERE status = 'in_progress' AND worker_id = :worker_id
""")
"""What Postgres believes a worker runs. It reads what the worker ran before, too, while a long transaction is open."""

SELECT_STILL_HELD = text(f"""
    SELECT id AS job_id, attempt_id, cancel_requested_at IS NOT NULL AS cancel_requested
    FROM jobs WHERE id = ANY(CAST(:job_ids AS uuid[])) AND {IN_PROGRESS} AND worker_id = :worker_id
""")
"""Which of the jobs that a worker runs Postgres believes it runs."""

RELEASE = text(f"""
    WITH mine AS (
        SELECT j.id, j.attempt_id AS held_attempt FROM attempts a JOIN jobs j ON j.id = a.job_id
        WHERE a.id = ANY(CAST(:attempt_ids AS uuid[])) AND j.status = 'in_progress' AND j.attempt_id = a.id
        ORDER BY j.id
        FOR UPDATE OF j
    ), given_back AS (
        UPDATE jobs
        SET status = CASE WHEN cancel_requested_at IS NULL THEN 'queued' ELSE 'cancelled' END,
            finished_at = CASE WHEN cancel_requested_at IS NULL THEN NULL ELSE now() END,
            dispatched_at = NULL, next_attempt_at = now(), worker_id = NULL, attempt_id = NULL
        FROM mine WHERE jobs.id = mine.id
        RETURNING held_attempt, status, reserved_usd, budget_periods, batch_id, batch_copies
    ), settled AS (
        SELECT budget_periods, reserved_usd AS released, 0 AS spent FROM given_back WHERE status = 'cancelled'
    ), moved AS ({MOVED}), {count_ended("given_back", "e.status = 'cancelled'")}
    UPDATE attempts a SET outcome = 'released', finished_at = now()
    FROM given_back WHERE a.id = given_back.held_attempt AND a.outcome IS NULL
    RETURNING a.id
""")
"""Give jobs back to the queue that a worker holds and will not run; no LLM was called for them."""

SNOOZE = text(f"""
    WITH snoozed AS (
        SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS r(
            attempt_id uuid, job_id uuid, retry_in_s double precision, route_index smallint, tier text, queue text)
    ), held AS (
        SELECT s.* FROM snoozed s JOIN jobs j ON j.id = s.job_id
        WHERE j.{IN_PROGRESS} AND j.attempt_id = s.attempt_id AND j.cancel_requested_at IS NULL
        ORDER BY j.id
        FOR UPDATE OF j
    ), forgotten AS (
        DELETE FROM attempts a USING held WHERE a.id = held.attempt_id
    )
    UPDATE jobs j
    SET status = 'queued', dispatched_at = NULL, next_attempt_at = now() + make_interval(secs => h.retry_in_s),
        started_at = CASE WHEN j.attempt_count > 1 THEN j.started_at END, attempt_count = j.attempt_count - 1,
        route_index = h.route_index, tier = coalesce(h.tier, j.tier), queue = coalesce(h.queue, j.queue),
        worker_id = NULL, attempt_id = NULL
    FROM held h WHERE j.id = h.job_id
    RETURNING j.id
""")
"""Put jobs back for later whose LLM was not called: their attempts never were.

A job that was cancelled meanwhile is left out, for its report to end.
"""
