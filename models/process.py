"""Processes that do the work, each under one lease for everything it holds.

A worker's jobs live and die with its process, so the process has the lease, not the job: a heartbeat is
one row's update however many jobs run. A process whose lease has run out is removed by the
rescue; only then are its jobs orphans, so a heartbeat and a rescue can never both win.
"""

from datetime import datetime

from sqlalchemy import ARRAY, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Json, PrimaryId
from models.lifecycle import QUEUED


class Process(Base):
    """A running relay or worker; ``capacity`` is how many jobs it keeps in flight, ``models`` what it has loaded."""

    __tablename__ = "processes"

    id: Mapped[PrimaryId]
    role: Mapped[str]
    name: Mapped[str]
    queues: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    capacity: Mapped[int] = mapped_column(server_default="0")
    in_flight: Mapped[int] = mapped_column(server_default="0")
    models: Mapped[list[Json]] = mapped_column(JSONB, server_default="[]")
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    lease_expires_at: Mapped[datetime]


REGISTER = text("""
    INSERT INTO processes (id, role, name, queues, capacity, lease_expires_at)
    VALUES (:id, :role, :name, :queues, :capacity, now() + make_interval(secs => :lease_s))
""")

HEARTBEAT = text(f"""
    WITH beat AS (
        UPDATE processes
        SET lease_expires_at = now() + make_interval(secs => :lease_s), in_flight = :in_flight,
            models = coalesce(CAST(:models AS jsonb), models)
        WHERE id = :id
        RETURNING id
    ), held AS (
        SELECT jobs.id FROM beat, jobs
        WHERE jobs.id = ANY(CAST(:waiting AS uuid[])) AND {QUEUED} AND dispatched_at IS NOT NULL
        ORDER BY jobs.id
        FOR UPDATE OF jobs SKIP LOCKED
    ), touched AS (
        UPDATE jobs SET dispatched_at = now() FROM held WHERE jobs.id = held.id
    )
    SELECT id FROM beat
""")
"""Renew a process's lease; no row means that it was taken away and all that it held with it.

``models`` is null when nothing of them has changed. ``waiting`` are jobs whose message the process has but which it
has not claimed: touching them tells the relay that their message is not lost.
"""

DEREGISTER = text("DELETE FROM processes WHERE id = :id")

DEREGISTER_NAMED = text("DELETE FROM processes WHERE name = :name")
"""Remove a process that is known to have ended, without waiting for its lease."""

SELECT_CONTACT = text("""
    SELECT clock_timestamp() AS at, current_setting('transaction_read_only')::boolean AS read_only,
           EXISTS (SELECT FROM processes WHERE role = 'worker' AND lease_expires_at > now()) AS any_worker
""")
"""The time by Postgres's clock, whether it takes writes, and whether any worker renews its lease."""

REAP = text("DELETE FROM processes WHERE lease_expires_at < now() RETURNING id, role, name")
"""Remove the processes whose lease has run out; not right after Postgres was away, when none could beat
(:class:`workers.reaper.Reaper`)."""

SELECT_IDS = text("SELECT id FROM processes")

SELECT_LIVE = text("""
    SELECT role, name, queues, capacity, in_flight, started_at, lease_expires_at
    FROM processes WHERE lease_expires_at > now() ORDER BY role, name
""")

SELECT_LOADED = text("""
    SELECT name AS worker, models FROM processes
    WHERE lease_expires_at > now() AND models <> '[]' ORDER BY name
""")
"""What live processes have loaded, as they last reported."""

SELECT_BACKLOG = text("""
    SELECT q.queue, w.waiting, p.published, p.in_progress
    FROM unnest(CAST(:queues AS text[])) AS q(queue)
    CROSS JOIN LATERAL (
        SELECT count(*) AS waiting FROM (
            SELECT FROM jobs WHERE queue = q.queue AND status = 'queued' AND dispatched_at IS NULL
            ORDER BY tenant_id, priority, next_attempt_at LIMIT :most) due
    ) w
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE status = 'queued') AS published,
               count(*) FILTER (WHERE status = 'in_progress') AS in_progress
        FROM jobs WHERE queue = q.queue AND finished_at IS NULL AND dispatched_at IS NOT NULL
    ) p
""")
"""The unfinished jobs of each queue; those that wait are counted up to ``most``, so that a backlog of
millions costs no more than that (in the order of ix_jobs_due, so that no other index is tempting), and the others are
bounded by the queue's window."""
