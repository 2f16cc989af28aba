"""Jobs: the caller's requests, persisted, and the statements that submit, read, cancel and expire them."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, CheckConstraint, ForeignKey, Index, SmallInteger, Text, TextClause, func, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Cost, Json, PrimaryId, Usd
from models.batch import count_ended
from models.budget import MOVED
from models.lifecycle import IN_PROGRESS, QUEUED, UNFINISHED, JobStatus, sources_of

PRIORITIES = {"high": 0, "normal": 1, "low": 2}

DUE = text("status = 'queued' AND dispatched_at IS NULL")
"""Waits to be published."""

NEWLY_DUE = text("finished_at IS NULL AND dispatched_at IS NULL")
PUBLISHED = text("finished_at IS NULL AND dispatched_at IS NOT NULL")
"""Neither published nor finished; published and not finished, which fills a queue's window. They do not name
``status``: only one index serves a statement with such a condition, whatever PostgreSQL believes about the table."""

EXPIRING = text("status IN ('queued', 'in_progress') AND expires_at > '-infinity'")
"""Not finished. The bound, which excludes nothing, keeps every statement off the index that does not look for expired
jobs: where few jobs are unfinished PostgreSQL takes it for the cheapest way to any of them, and reads all its entries,
which beside a long transaction are those of all jobs that finished since."""


class Job(Base):
    """One request, from submission to its single terminal state.

    ``route`` lists the LLMs in the order they are tried and ``route_index`` points at the current
    one; ``attempt_id`` is the fencing token: the attempt that holds the job while it is in progress.
    ``rescues`` counts the attempts whose worker vanished. Until it has finished, the job holds
    ``reserved_usd`` in each of ``budget_periods``, and what it costs is booked there whenever it finishes.
    Its cost is ``cost_usd``, of six decimals, plus ``cost_rest_usd``, the further ones.
    The job of a batch's row has ``batch_id``; ``batch_copies`` further rows share its answer.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(f"status IN ({', '.join(repr(status.value) for status in JobStatus)})", name="status_known"),
        Index("ix_jobs_due", "queue", "tenant_id", "priority", "next_attempt_at", "id", postgresql_where=DUE),
        Index(
            "ix_jobs_newly_due",
            "queue",
            "priority",
            "next_attempt_at",
            postgresql_include=["tenant_id", "status"],
            postgresql_where=NEWLY_DUE,
        ),
        Index(
            "ix_jobs_published",
            "queue",
            "dispatched_at",
            postgresql_include=["tenant_id", "priority", "status"],
            postgresql_where=PUBLISHED,
        ),
        Index("ix_jobs_in_progress", "worker_id", postgresql_where=text("status = 'in_progress'")),
        Index("ix_jobs_expiring", "expires_at", postgresql_where=EXPIRING),
        Index(
            "uq_jobs_idempotency_key",
            "tenant_id",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key IS NOT NULL"),
        ),
        Index("ix_jobs_tenant", "tenant_id", "id"),
        Index("ix_jobs_tenant_status", "tenant_id", "status", "id", postgresql_where=text("status <> 'completed'")),
        Index(
            "uq_jobs_batch_row",
            "batch_id",
            "batch_row",
            "batch_round",
            unique=True,
            postgresql_where=text("batch_id IS NOT NULL"),
        ),
        Index(
            "ix_jobs_batch_unfinished_id",
            "batch_id",
            "id",
            postgresql_where=text("batch_id IS NOT NULL AND finished_at IS NULL"),
        ),
        Index(
            "ix_jobs_batch_finished",
            "batch_id",
            "finished_at",
            "id",
            postgresql_where=text("batch_id IS NOT NULL AND finished_at IS NOT NULL"),
        ),
        Index(
            "ix_jobs_batch_status",
            "batch_id",
            "status",
            "batch_row",
            "batch_round",
            postgresql_where=text("batch_id IS NOT NULL AND status IN ('failed', 'cancelled', 'expired')"),
        ),
    )

    id: Mapped[PrimaryId]
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"))
    api_key_id: Mapped[UUID | None]
    kind: Mapped[str] = mapped_column(server_default="generation")
    status: Mapped[str] = mapped_column(server_default=JobStatus.QUEUED.value)
    priority: Mapped[int] = mapped_column(SmallInteger, server_default="1")

    model: Mapped[str]
    route: Mapped[list[str]] = mapped_column(ARRAY(Text))
    route_index: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    routing: Mapped[Json | None]
    tier: Mapped[str]
    queue: Mapped[str]
    request: Mapped[Json]
    max_cost_usd: Mapped[Usd | None]
    reserved_usd: Mapped[Usd] = mapped_column(server_default="0")
    budget_periods: Mapped[list[int]] = mapped_column(ARRAY(BigInteger), server_default="{}")
    end_user: Mapped[str | None]
    team: Mapped[str | None]
    labels: Mapped[Json] = mapped_column(server_default="{}")
    idempotency_key: Mapped[str | None]
    request_hash: Mapped[bytes | None]
    batch_id: Mapped[UUID | None]
    batch_row: Mapped[int | None]
    batch_round: Mapped[int | None] = mapped_column(SmallInteger)
    batch_copies: Mapped[int | None]

    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    next_attempt_at: Mapped[datetime] = mapped_column(server_default=func.now())
    dispatched_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]

    attempt_id: Mapped[UUID | None]
    worker_id: Mapped[UUID | None]
    attempt_count: Mapped[int] = mapped_column(server_default="0")
    llm_failures: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    rescues: Mapped[int] = mapped_column(SmallInteger, server_default="0")

    result: Mapped[Json | None]
    error: Mapped[Json | None]
    input_tokens: Mapped[int] = mapped_column(server_default="0")
    output_tokens: Mapped[int] = mapped_column(server_default="0")
    cost_usd: Mapped[Usd] = mapped_column(server_default="0")
    cost_rest_usd: Mapped[Cost | None]


JOB_ROWS = """
    json_to_recordset(CAST(:rows AS json)) AS r(
        id uuid, tenant_id uuid, api_key_id uuid, kind text, priority smallint, model text, route json, routing jsonb,
        tier text, queue text, request jsonb, max_cost_usd numeric, reserved_usd numeric, budget_periods json,
        end_user text, team text, labels jsonb, idempotency_key text, request_hash text,
        expires_in double precision)"""
"""SQL: jobs to record, from a JSON array."""

INSERT_INTO_JOBS = """
    INSERT INTO jobs (id, tenant_id, api_key_id, kind, priority, model, route, routing, tier, queue, request,
                      max_cost_usd, reserved_usd, end_user, team, labels, idempotency_key, request_hash, expires_at,
                      budget_periods)
    SELECT r.id, r.tenant_id, r.api_key_id, kind, priority, model,
           ARRAY(SELECT json_array_elements_text(route)), routing, tier, queue, request,
           max_cost_usd, coalesce(r.reserved_usd, 0), r.end_user, r.team, labels, idempotency_key,
           decode(request_hash, 'hex'), now() + make_interval(secs => expires_in)"""
"""SQL: records jobs from rows ``r`` of JOB_ROWS; the periods they reserve in are to follow as the last column."""

INSERT_JOBS = text(f"""
    WITH r AS MATERIALIZED (
        SELECT * FROM {JOB_ROWS}
    ), budgeted AS MATERIALIZED (
        SELECT t.tenant_id FROM (SELECT DISTINCT tenant_id FROM r) t
        WHERE EXISTS (SELECT FROM budgets b WHERE b.tenant_id = t.tenant_id)
    ), inserted AS (
        {INSERT_INTO_JOBS}, '{{}}'
        FROM r WHERE r.tenant_id NOT IN (SELECT tenant_id FROM budgeted)
        ON CONFLICT DO NOTHING
        RETURNING id, created_at, expires_at
    )
    SELECT id, created_at, expires_at, CAST(NULL AS uuid) AS budgeted FROM inserted
    UNION ALL
    SELECT NULL, NULL, NULL, tenant_id FROM budgeted
""")
"""Record jobs of tenants that have no budget, given as JOB_ROWS; returns those recorded, and the tenants that do
have one (``budgeted``), whose jobs are left to :mod:`models.reservation`.

A row that is missing from what returns met its own id (the statement ran twice) or its tenant's
idempotency key.
"""


_JOB_VIEW = """
    SELECT id, tenant_id, kind, status, priority, model, tier, queue, route, route_index, routing,
           created_at, started_at, finished_at, expires_at, next_attempt_at, cancel_requested_at,
           result, error, input_tokens, output_tokens, cost_usd + coalesce(cost_rest_usd, 0) AS cost_usd,
           end_user, team, labels, batch_id,
           (SELECT json_agg(json_build_object(
                       'number', number, 'model', llm, 'provider', provider, 'outcome', outcome,
                       'error', a.error, 'started_at', a.started_at, 'duration_ms', duration_ms,
                       'time_to_first_token_ms', time_to_first_token_ms, 'input_tokens', a.input_tokens,
                       'output_tokens', a.output_tokens, 'cached_input_tokens', a.cached_input_tokens,
                       'reasoning_tokens', a.reasoning_tokens, 'estimated', a.usage_estimated,
                       'cost_usd', a.cost_usd::text, 'adapted', a.adapted)
                   ORDER BY number)
            FROM attempts a WHERE a.job_id = j.id) AS attempts
    FROM jobs j
"""

SELECT_JOB = text(f"{_JOB_VIEW} WHERE id = :id AND tenant_id = :tenant_id")
"""A tenant's job, with its attempts as a JSON array (null when there is none)."""

SELECT_JOB_BY_KEY = text(
    f"SELECT v.*, encode(k.request_hash, 'hex') AS request_hash FROM ({_JOB_VIEW}) v JOIN jobs k ON k.id = v.id"
    " WHERE k.tenant_id = :tenant_id AND k.idempotency_key = :idempotency_key"
)
"""The job that a tenant's idempotency key made."""

_LAST_ID = "'ffffffff-ffff-ffff-ffff-ffffffffffff'"
_LAST_ROW = f"{2**31 - 1}, {2**15 - 1}"


def _with_status(status: str | None) -> str:
    return "" if status is None else f"AND status = '{status}'"


def _list_jobs(status: str | None) -> TextClause:
    return text(f"""{_JOB_VIEW}
        WHERE tenant_id = :tenant_id {_with_status(status)} AND id < coalesce(CAST(:after AS uuid), {_LAST_ID})
        ORDER BY id DESC
        LIMIT :limit
    """)


def _of_batch_with_status(status: str | None) -> str:
    """As _with_status; unfinished jobs are found by ``ix_jobs_batch_unfinished_id``, not among all that are queued."""
    return f"AND finished_at IS NULL AND status || '' = '{status}'" if status in UNFINISHED else _with_status(status)


def _list_batch_jobs(status: str | None) -> TextClause:
    return text(f"""
        WITH position AS MATERIALIZED (
            SELECT batch_row, batch_round FROM jobs WHERE id = :after AND batch_id = :batch_id
            UNION ALL
            SELECT {_LAST_ROW} WHERE CAST(:after AS uuid) IS NULL
        )
        {_JOB_VIEW}
        WHERE batch_id = :batch_id AND batch_id IS NOT NULL {_of_batch_with_status(status)}
          AND EXISTS (SELECT FROM batches WHERE id = :batch_id AND tenant_id = :tenant_id)
          AND (batch_row, batch_round) < ((SELECT batch_row FROM position), (SELECT batch_round FROM position))
        ORDER BY batch_row DESC, batch_round DESC
        LIMIT :limit
    """)


_STATUSES: tuple[str | None, ...] = (None, *JobStatus)

LIST_JOBS = {status: _list_jobs(status) for status in _STATUSES}
"""A page of a tenant's jobs, newest first; ``after`` is the last id of the page before.

There is a statement for each status, with None for all of them. PostgreSQL uses a partial index only if the statement
itself names the status. ``completed`` reads the tenant's jobs in order and skips the others.
"""

LIST_BATCH_JOBS = {status: _list_batch_jobs(status) for status in _STATUSES}
"""A page of the jobs of one batch, last row first; otherwise as LIST_JOBS."""

SELECT_FINISHED = text("""
    SELECT id FROM jobs WHERE id = ANY(CAST(:ids AS uuid[])) AND status NOT IN ('queued', 'in_progress')
""")
"""Which of these jobs have reached a terminal state."""

_CANCELLABLE = ", ".join(f"'{status}'" for status in sources_of(JobStatus.CANCELLED))

CANCEL_JOB = text(f"""
    WITH asked AS (
        UPDATE jobs
        SET cancel_requested_at = coalesce(cancel_requested_at, now()),
            status = CASE status WHEN 'queued' THEN 'cancelled' ELSE status END,
            finished_at = CASE status WHEN 'queued' THEN now() END
        WHERE id = :id AND tenant_id = :tenant_id AND finished_at IS NULL AND status || '' IN ({_CANCELLABLE})
        RETURNING id, status, reserved_usd, budget_periods, batch_id, batch_copies
    ), settled AS (
        SELECT budget_periods, reserved_usd AS released, 0 AS spent FROM asked WHERE status = 'cancelled'
    ), moved AS ({MOVED}), {count_ended("asked", "e.status = 'cancelled'")}
    SELECT id, status FROM asked
""")
"""Cancel a job that waits and release its reservation, or ask for the cancellation of one that runs: its worker
ends it, so that what the attempt used is settled in the same statement."""

IS_BOOKED = """coalesce((SELECT a.usage_estimated OR a.llm = ANY(CAST(:free AS text[]))
                        FROM attempts a WHERE a.id = j.attempt_id), true)"""
"""SQL: whether a job ``j`` can be taken from its worker: the worst case of its attempt is booked (:mod:`models.lost`),
or its LLM is one of ``:free``; always so if that is null. A scalar subquery: it must stay a look-up for each job."""

EXPIRE_JOBS = text(f"""
    WITH late AS MATERIALIZED (
        (SELECT id FROM jobs
         WHERE status IN ('queued', 'in_progress') AND {QUEUED}
           AND expires_at > '-infinity' AND expires_at <= now()
         ORDER BY expires_at LIMIT :limit)
        UNION ALL
        (SELECT id FROM jobs j
         WHERE status IN ('queued', 'in_progress') AND {IN_PROGRESS}
           AND expires_at > '-infinity' AND expires_at <= now() - make_interval(secs => :grace_s) AND {IS_BOOKED}
         ORDER BY expires_at LIMIT :limit)
    ), locked AS MATERIALIZED (
        SELECT id, attempt_id FROM jobs j
        WHERE id = ANY(ARRAY(SELECT id FROM late))
          AND ({QUEUED} AND expires_at <= now()
               OR {IN_PROGRESS} AND expires_at <= now() - make_interval(secs => :grace_s) AND {IS_BOOKED})
        ORDER BY id
        FOR UPDATE SKIP LOCKED
    ), closed AS (
        UPDATE attempts a SET outcome = 'expired', finished_at = now()
        FROM locked WHERE a.id = locked.attempt_id AND a.outcome IS NULL
    ), ended AS (
        UPDATE jobs j
        SET status = 'expired', finished_at = now(), worker_id = NULL, attempt_id = NULL,
            error = CAST(:error AS jsonb)
        FROM locked WHERE j.id = locked.id
        RETURNING j.id, j.status, j.reserved_usd, j.budget_periods, j.batch_id, j.batch_copies
    ), settled AS (
        SELECT budget_periods, reserved_usd AS released, 0 AS spent FROM ended
    ), moved AS ({MOVED}), {count_ended("ended", "true")}
    SELECT id, status FROM ended
""").bindparams(free=None)
"""End jobs that are past their time and release their reservations, up to ``limit`` of those that wait and as many of
those that run. A job in progress is ended only after ``grace_s``: its worker ends it itself and knows what it used;
what it may have cost was booked before.

The jobs are found in the order of ``expires_at`` by ``ix_jobs_expiring`` and locked in the order of their ids. Of a
range with two ends PostgreSQL expects few rows even before it has counted any: with one end it would choose another
index, and read every job that waits.
"""
