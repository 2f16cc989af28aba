"""The ledger added up by day, so that sums over long times do not read every entry.

``usage_progress.rolled_until`` says how far the ledger is added up: the sums have every entry with an earlier
``created_at``, and no other. Whoever needs an exact sum adds the entries from then on: those of a few minutes.
:class:`workers.maintenance.Maintenance` moves ``rolled_until`` on.

An entry's ``created_at`` is the start of its transaction, which may commit later. So ``rolled_until`` stays
``MARGIN_S`` behind, longer than any transaction that writes to the ledger can last, and behind the oldest transaction
that Headrace has open.
"""

from datetime import date, datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Index, Numeric, SmallInteger, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base

MARGIN_S = 300.0
"""Seconds. A transaction that settles has at most four statements of 30 s (``statement_timeout``) and waits at most
60 s between two (``idle_in_transaction_session_timeout``): see ``models.database.create_engine``."""


class UsageDay(Base):
    """What the attempts of a day (UTC) used on one LLM for one payer."""

    __tablename__ = "usage_days"
    __table_args__ = (
        Index(
            "uq_usage_days_group",
            "tenant_id",
            "day",
            "llm",
            "team",
            "end_user",
            "api_key_id",
            unique=True,
            postgresql_nulls_not_distinct=True,
        ),
    )
    __mapper_args__ = {"primary_key": ["tenant_id", "day", "llm", "team", "end_user", "api_key_id"]}  # noqa: RUF012

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"))
    day: Mapped[date]
    llm: Mapped[str]
    team: Mapped[str | None]
    end_user: Mapped[str | None]
    api_key_id: Mapped[UUID | None]
    entries: Mapped[int] = mapped_column(BigInteger)
    attempts: Mapped[int] = mapped_column(BigInteger)
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    cost_usd: Mapped[Decimal] = mapped_column(Numeric)


class SpendDay(Base):
    """What a tenant spent on a day (UTC)."""

    __tablename__ = "spend_days"

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    cost_usd: Mapped[Decimal] = mapped_column(Numeric)


class UsageRepeat(Base):
    """An entry of a job that has several: with these, the number of jobs follows from the number of entries."""

    __tablename__ = "usage_repeats"
    __table_args__ = (Index(None, "tenant_id", "created_at"),)

    attempt_id: Mapped[UUID] = mapped_column(primary_key=True)
    created_at: Mapped[datetime] = mapped_column(primary_key=True)
    job_id: Mapped[UUID]
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"))
    llm: Mapped[str]
    team: Mapped[str | None]
    end_user: Mapped[str | None]
    api_key_id: Mapped[UUID | None]


class UsageProgress(Base):
    """The only row of its table: how far the ledger is added up."""

    __tablename__ = "usage_progress"

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    rolled_until: Mapped[datetime]


PROGRESS = (
    "progress AS MATERIALIZED (SELECT coalesce(max(rolled_until), '-infinity') AS rolled_until FROM usage_progress)"
)
"""SQL: a CTE of one row that says how far the ledger is added up."""

SELECT_CLOSED = text("""
    SELECT least(now() - make_interval(secs => :margin_s),
                 (SELECT min(xact_start) FROM pg_stat_activity
                  WHERE datname = current_database() AND application_name LIKE 'headrace-%')) AS until
""")
"""Before when every entry of the ledger is committed. To be read in a transaction before ROLL_UP's: its snapshot then
has what these transactions wrote."""


def entry_id(kind: str, attempt_id: str) -> str:
    """SQL: the key of the ``estimate`` or the ``reversal`` of an attempt, which can be entered once."""
    return f"CAST(md5('{kind}' || CAST({attempt_id} AS text)) AS uuid)"


ATTEMPTS = "CASE l.kind WHEN 'reversal' THEN -1 ELSE 1 END"
"""SQL: how many attempts an entry ``l`` of the ledger stands for: an estimate and its reversal are none together."""

OF_ATTEMPT = f"l.attempt_id = ANY(ARRAY[a.id, {entry_id('estimate', 'a.id')}, {entry_id('reversal', 'a.id')}])"
"""SQL: that an entry ``l`` of the ledger is one of the attempt ``a``."""

_GROUP = "tenant_id, day, llm, team, end_user, api_key_id"
_SUMS = ("entries", "attempts", "input_tokens", "output_tokens", "cost_usd")

# Each tenant's entries are looked up by themselves (OFFSET 0): a join planned as a whole could read the whole ledger.
ROLL_UP = text(f"""
    WITH at AS MATERIALIZED (
        SELECT rolled_until FROM usage_progress FOR UPDATE SKIP LOCKED
    ), first AS MATERIALIZED (
        SELECT min(f.created_at) AS created_at
        FROM at CROSS JOIN tenants t CROSS JOIN LATERAL (
            SELECT l.created_at FROM ledger_entries l
            WHERE l.tenant_id = t.id AND l.created_at >= at.rolled_until AND l.created_at < :until
            ORDER BY l.created_at LIMIT 1
        ) f
    ), slice AS MATERIALIZED (
        SELECT at.rolled_until AS since,
               least(:until, first.created_at + make_interval(secs => :slice_s)) AS until
        FROM at, first WHERE at.rolled_until < :until
    ), entry AS MATERIALIZED (
        SELECT e.*, CAST(e.created_at AT TIME ZONE 'UTC' AS date) AS day
        FROM slice s CROSS JOIN tenants t CROSS JOIN LATERAL (
            SELECT l.tenant_id, l.created_at, l.job_id, l.llm, l.team, l.end_user, l.api_key_id, 1 AS entries,
                   {ATTEMPTS} AS attempts, l.input_tokens, l.output_tokens, l.cost_usd
            FROM ledger_entries l
            WHERE l.tenant_id = t.id AND l.created_at >= s.since AND l.created_at < s.until OFFSET 0
        ) e
    ), by_group AS (
        INSERT INTO usage_days AS u ({_GROUP}, {", ".join(_SUMS)})
        SELECT {_GROUP}, {", ".join(f"sum({name})" for name in _SUMS)} FROM entry GROUP BY {_GROUP}
        ON CONFLICT ({_GROUP}) DO UPDATE SET {", ".join(f"{name} = u.{name} + excluded.{name}" for name in _SUMS)}
    ), by_tenant AS (
        INSERT INTO spend_days AS d (tenant_id, day, cost_usd)
        SELECT tenant_id, day, sum(cost_usd) FROM entry GROUP BY tenant_id, day
        ON CONFLICT (tenant_id, day) DO UPDATE SET cost_usd = d.cost_usd + excluded.cost_usd
    ), of_job AS MATERIALIZED (
        SELECT o.*, count(*) OVER (PARTITION BY o.job_id) AS entries
        FROM slice s CROSS JOIN (SELECT DISTINCT job_id FROM entry) j CROSS JOIN LATERAL (
            SELECT l.attempt_id, l.created_at, l.job_id, l.tenant_id, l.llm, l.team, l.end_user, l.api_key_id
            FROM attempts a JOIN ledger_entries l ON {OF_ATTEMPT}
            WHERE a.job_id = j.job_id AND l.created_at < s.until OFFSET 0
        ) o
    ), repeated AS (
        INSERT INTO usage_repeats (attempt_id, created_at, job_id, tenant_id, llm, team, end_user, api_key_id)
        SELECT attempt_id, created_at, job_id, tenant_id, llm, team, end_user, api_key_id FROM of_job WHERE entries > 1
        ON CONFLICT DO NOTHING
    )
    UPDATE usage_progress SET rolled_until = slice.until FROM slice
    RETURNING usage_progress.rolled_until
""")
"""Add up the next entries of the ledger: those of ``slice_s`` seconds from the first on, but none from ``until`` (see
SELECT_CLOSED) on. Returns how far it came; nothing when it had come to ``until``, or another process is at it."""
