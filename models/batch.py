"""Batches: many rows under one order, and what becomes of them.

A row waits as a line of ``batch_rows``, small and untouched, until the relay's window has room: only then is it made a
job (:mod:`models.feeding`). So a batch of a million rows costs the queues nothing, and pausing, cancelling or expiring
it is one line's change. A row's job carries ``batch_id``, ``batch_row`` and ``batch_round``; the row's answer is that
of the job whose round is the row's own (``batch_rows.round``). Where there is no such job, the row is still to run,
or, where ``endings[round + 1]`` says so, ended ``cancelled`` or ``expired`` without having run. The batch holds the
reservation of the rows that are no jobs yet; each job takes its own share with it.

Counts are kept in ``batch_counts``, a line per batch and writer, so that no line is everybody's.

==============  ==========================================================================================
``validating``  its input file is being read (OpenAI's API); nothing of it costs money yet
``failed``      its input was refused: ``errors`` says why
``in_progress`` rows become jobs
``paused``      no further row does; ``pause_reason`` is ``requested`` or ``budget_exhausted``
``finalizing``  past its deadline; the rows that still run end
``cancelling``  asked to end; the rows that still run are told
``completed`` ``expired`` ``cancelled``  ended; a retry takes it back to ``in_progress``
==============  ==========================================================================================
"""

from datetime import datetime
from typing import Any, Literal, get_args
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    LargeBinary,
    SmallInteger,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Cost, Json, PrimaryId, Usd

BatchStatus = Literal[
    "validating",
    "failed",
    "in_progress",
    "paused",
    "finalizing",
    "cancelling",
    "completed",
    "expired",
    "cancelled",
]
ENDED = ("completed", "expired", "cancelled", "failed")
BATCH_PRIORITY = 3
"""Jobs of batches have this much more than their batch's ``priority`` (0 high, 1 normal, 2 low): every single job of a
tenant goes before them. Their rows as they finish: index ix_jobs_batch_finished (batch_id, finished_at, id)."""


class Batch(Base):
    """An order for many rows.

    ``routes`` lists the distinct ways that its rows go: objects of ``model``, ``route``, ``tier``, ``queue``,
    ``routing``; a row names its own by place, from 0. ``request`` is what all rows have in common of a job's request;
    its ``messages``, if it has any, come before the row's own. ``template`` is a list of ``{"text": ...}`` and
    ``{"column": <place in columns>}``, which become the row's user message; null where rows bring
    their own request. ``dialect`` says how the results are written as CSV, where that is not the usual way
    (:class:`api.batches.records.Dialect`).

    ``next_row`` is the first row that the current ``round`` has not passed; a round makes jobs of
    the rows that have its number, and rows that are to run again wait for rounds up to ``last_round``. ``endings`` has
    a batch's ending for each round that is over. ``reserved_usd`` is held in ``budget_periods`` for the rows that are
    still to become jobs.
    """

    __tablename__ = "batches"
    __table_args__ = (
        CheckConstraint(f"status IN ({', '.join(map(repr, get_args(BatchStatus)))})", name="status_known"),
        Index(None, "tenant_id", "id"),
        Index("ix_batches_live", "id", postgresql_where=text(f"status NOT IN ({', '.join(map(repr, ENDED))})")),
        Index(
            "uq_batches_idempotency_key",
            "tenant_id",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key IS NOT NULL"),
        ),
        Index("ix_batches_fed", "id", postgresql_where=text("status = 'in_progress'")),
    )

    id: Mapped[PrimaryId]
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    api_key_id: Mapped[UUID | None]
    status: Mapped[str]
    endpoint: Mapped[str]
    name: Mapped[str | None]
    model: Mapped[str | None]
    routes: Mapped[list[Any]] = mapped_column(JSONB, server_default="[]")  # Any: see above
    request: Mapped[Json] = mapped_column(server_default="{}")
    columns: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    template: Mapped[list[Any] | None] = mapped_column(JSONB)  # Any: see above
    dialect: Mapped[Json | None]
    dedupe: Mapped[bool] = mapped_column(server_default="false")
    priority: Mapped[int] = mapped_column(SmallInteger, server_default="1")
    max_parallel: Mapped[int | None]
    completion_window: Mapped[str]
    callback_url: Mapped[str | None]
    end_user: Mapped[str | None]
    team: Mapped[str | None]
    labels: Mapped[Json] = mapped_column(server_default="{}")
    idempotency_key: Mapped[str | None]
    request_hash: Mapped[str | None]

    total: Mapped[int] = mapped_column(server_default="0")
    next_row: Mapped[int] = mapped_column(server_default="1")
    round: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    last_round: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    endings: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    reserved_usd: Mapped[Usd] = mapped_column(server_default="0")
    budget_periods: Mapped[list[int]] = mapped_column(ARRAY(BigInteger), server_default="{}")
    pause_reason: Mapped[str | None]
    errors: Mapped[list[Any] | None] = mapped_column(JSONB)  # Any: code, message, param, line

    input_file_id: Mapped[UUID | None]
    output_file_id: Mapped[UUID | None]
    error_file_id: Mapped[UUID | None]
    output_expires_s: Mapped[int | None]

    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    in_progress_at: Mapped[datetime | None]
    paused_at: Mapped[datetime | None]
    finalizing_at: Mapped[datetime | None]
    cancelling_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    failed_at: Mapped[datetime | None]
    expired_at: Mapped[datetime | None]
    cancelled_at: Mapped[datetime | None]
    expires_at: Mapped[datetime]


class BatchRow(Base):
    """A row as it was uploaded; ``number`` counts from 1, ``line`` is where it began in the file.

    It has ``cells`` for the batch's template, or a ``request`` of its own (a job's, whole). Where ``route`` is
    REFUSED_ROUTE the row never becomes a job and has failed from the beginning: ``request`` is ``{"refused": {"code",
    "message", "param", "status"}}``. ``same_as`` is the first
    row with the same request, whose answer it shares (``dedupe``); it never becomes a job. ``round`` is the round that
    made the row's job, or is to make it.
    """

    __tablename__ = "batch_rows"
    __table_args__ = (
        Index("ix_batch_rows_same", "batch_id", "same_as", postgresql_where=text("same_as IS NOT NULL")),
        Index("ix_batch_rows_again", "batch_id", "round", "number", postgresql_where=text("round > 0")),
    )

    batch_id: Mapped[UUID] = mapped_column(primary_key=True)  # no foreign key: COPY would check it for every row
    number: Mapped[int] = mapped_column(primary_key=True)
    line: Mapped[int]
    custom_id: Mapped[str | None]
    route: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    cells: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    request: Mapped[Json | None]
    reserved_usd: Mapped[Usd] = mapped_column(server_default="0")
    digest: Mapped[bytes | None] = mapped_column(LargeBinary)
    same_as: Mapped[int | None]
    round: Mapped[int] = mapped_column(SmallInteger, server_default="0")


class BatchCount(Base):
    """What one writer (a worker process, a relay) has counted of a batch; the sum over the writers is exact.

    ``completed`` and the other counts are of rows: of jobs that ended so with the rows that share their answers, and of
    rows that were never to run. A retry takes its rows out again. ``unpaid`` are those of ``failed`` whose budget was
    short. Tokens and costs are of every attempt.
    """

    __tablename__ = "batch_counts"

    batch_id: Mapped[UUID] = mapped_column(ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True)
    writer: Mapped[UUID] = mapped_column(primary_key=True)
    completed: Mapped[int] = mapped_column(server_default="0")
    failed: Mapped[int] = mapped_column(server_default="0")
    cancelled: Mapped[int] = mapped_column(server_default="0")
    expired: Mapped[int] = mapped_column(server_default="0")
    unpaid: Mapped[int] = mapped_column(server_default="0")
    input_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    output_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    cached_input_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    reasoning_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    cost_usd: Mapped[Cost] = mapped_column(server_default="0")


_COUNTS = (
    "completed", "failed", "cancelled", "expired", "unpaid",
    "input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens", "cost_usd",
)  # fmt: skip

COUNT = f"""
        INSERT INTO batch_counts AS c (batch_id, writer, {", ".join(_COUNTS)})
        SELECT n.batch_id, :writer, {", ".join(f"sum(n.{name})" for name in _COUNTS)}
        FROM counting n
        WHERE n.batch_id IS NOT NULL
        GROUP BY n.batch_id
        ORDER BY n.batch_id
        ON CONFLICT (batch_id, writer) DO UPDATE
            SET {", ".join(f"{name} = c.{name} + excluded.{name}" for name in _COUNTS)}"""
"""SQL: adds what ``counting`` has (batch_id and a number for each count) to the line of ``:writer``; nothing where no
job is of a batch. Lines are locked in the order of batches, after the jobs, so that no two statements can deadlock."""


def count_ended(source: str, condition: str) -> str:
    """SQL: two CTEs that count jobs which a statement has just ended, without an attempt of theirs: rows of ``source``
    (status, batch_id, batch_copies) that meet the condition."""
    ended = ", ".join(
        f"CASE WHEN e.status = '{name}' THEN 1 + coalesce(e.batch_copies, 0) ELSE 0 END AS {name}"
        for name in ("completed", "failed", "cancelled", "expired")
    )
    return f"""counting AS (
        SELECT e.batch_id, {ended}, 0 AS unpaid, 0 AS input_tokens, 0 AS output_tokens,
               0 AS cached_input_tokens, 0 AS reasoning_tokens, 0 AS cost_usd
        FROM {source} e WHERE e.batch_id IS NOT NULL AND ({condition})
    ), counted AS ({COUNT})"""


BY_HAND = UUID(int=0)
"""The writer of what callers do by the API, which is rare."""

AT_BEGINNING = UUID(int=1)
"""The writer of the rows that had failed when their batch began: those that were refused."""

REFUSED_ROUTE = -1
"""The route of a row that was refused."""

_VIEW = f"""
    SELECT b.id, b.tenant_id, b.status, b.endpoint, b.name, b.model, b.columns, b.dedupe, b.priority, b.max_parallel,
           b.completion_window, b.end_user, b.team, b.labels, b.total, b.reserved_usd, b.pause_reason, b.errors,
           b.input_file_id, b.output_file_id, b.error_file_id, b.created_at, b.in_progress_at, b.paused_at,
           b.finalizing_at, b.cancelling_at, b.completed_at, b.failed_at, b.expired_at, b.cancelled_at, b.expires_at,
           {", ".join(f"n.{name}" for name in _COUNTS)}, n.refused,
           u.in_progress, u.reserved_usd AS reserved_by_jobs, r.recent,
           least(:rate_s, extract(epoch FROM now() - b.in_progress_at))::float AS recent_s,
           extract(epoch FROM now() - b.in_progress_at)::float AS age_s
    FROM batches b
    CROSS JOIN LATERAL (
        SELECT {", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in _COUNTS)},
               coalesce(sum(failed) FILTER (WHERE writer = '{AT_BEGINNING}'), 0) AS refused
        FROM batch_counts WHERE batch_id = b.id
    ) n
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(1 + coalesce(batch_copies, 0)) FILTER (WHERE status = 'in_progress'), 0) AS in_progress,
               coalesce(sum(reserved_usd), 0) AS reserved_usd
        FROM jobs WHERE batch_id = b.id AND batch_id IS NOT NULL AND finished_at IS NULL
    ) u
    LEFT JOIN LATERAL (
        SELECT count(*) AS recent FROM jobs
        WHERE batch_id = b.id AND batch_id IS NOT NULL AND finished_at IS NOT NULL
          AND finished_at > now() - make_interval(secs => :rate_s)
    ) r ON b.status = 'in_progress'
"""

SELECT_BATCH = text(f"{_VIEW} WHERE b.id = :id AND b.tenant_id = :tenant_id")
"""A tenant's batch with its counts, what its unfinished jobs hold, and its jobs that ended in the last ``rate_s``
seconds."""

LIST_BATCHES = text(f"""{_VIEW}
    WHERE b.tenant_id = :tenant_id AND (CAST(:after AS uuid) IS NULL OR b.id < :after)
    ORDER BY b.id DESC
    LIMIT :limit
""")
"""A page of a tenant's batches, newest first; ``after`` is the last id of the page before."""
