"""Budgets: what a tenant, team, user or API key may spend in a day, a month or altogether.

A period is a budget's window at one time. Whoever submits jobs locks the periods that cover them (in the order of
their ids) and adds to ``reserved_usd`` (:mod:`models.reservation`). Whoever settles or releases only appends a
movement, so settlements wait for nobody; the next to lock the period folds its movements in. A movement never makes
``spent + reserved`` larger, so one that is not seen yet only makes a budget look fuller than it is. The exceptions
are in ``docs/decisions/006-budgets.md``.
"""

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Numeric, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Cost, PrimaryId, Usd, usd_text
from models.usage import PROGRESS


class Budget(Base):
    """A limit in USD for a scope and a window; ``subject`` is the team's or user's name or the lookup part of the
    API key (``hr_<lookup>_...``), null for the tenant as a whole."""

    __tablename__ = "budgets"
    __table_args__ = (
        CheckConstraint("scope IN ('tenant', 'team', 'user', 'key')", name="scope_known"),
        CheckConstraint("\"window\" IN ('day', 'month', 'total')", name="window_known"),
        CheckConstraint("(scope = 'tenant') = (subject IS NULL)", name="subject_of_scope"),
        CheckConstraint("limit_usd >= 0", name="limit_not_negative"),
        UniqueConstraint("tenant_id", "scope", "subject", "window", postgresql_nulls_not_distinct=True),
    )

    id: Mapped[PrimaryId]
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    scope: Mapped[str]
    subject: Mapped[str | None]
    window: Mapped[str]
    limit_usd: Mapped[Usd]
    alert_at: Mapped[Decimal] = mapped_column(Numeric(7, 6))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class BudgetPeriod(Base):
    """One window of a budget: its limit, what is spent and what is reserved, up to its movements."""

    __tablename__ = "budget_periods"
    __table_args__ = (UniqueConstraint("budget_id", "period_start"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    budget_id: Mapped[UUID] = mapped_column(ForeignKey("budgets.id", ondelete="CASCADE"))
    period_start: Mapped[datetime]
    limit_usd: Mapped[Usd]
    spent_usd: Mapped[Cost] = mapped_column(server_default="0")
    reserved_usd: Mapped[Cost] = mapped_column(server_default="0")


class BudgetMovement(Base):
    """What one statement settled or released in a period; it lives until it is folded in.

    The sum over a statement's jobs, so that a group of settlements is one row. No foreign key: it would lock the
    period's row.
    """

    __tablename__ = "budget_movements"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    period_id: Mapped[int] = mapped_column(BigInteger, index=True)
    reserved_delta: Mapped[Cost]
    spent_delta: Mapped[Cost]


PERIOD_START = """CASE b."window" WHEN 'day' THEN date_trunc('day', now(), 'UTC')
                                  WHEN 'month' THEN date_trunc('month', now(), 'UTC')
                                  ELSE timestamptz 'epoch' END"""
"""SQL: when the current period of a budget ``b`` began, in UTC."""

COVERING = """
    SELECT b.* FROM budgets b
    WHERE b.tenant_id = who.tenant_id AND b.scope = 'tenant' AND b.subject IS NULL
    UNION ALL
    SELECT b.* FROM budgets b
    WHERE b.tenant_id = who.tenant_id AND b.scope = 'team' AND b.subject = who.team
    UNION ALL
    SELECT b.* FROM budgets b
    WHERE b.tenant_id = who.tenant_id AND b.scope = 'user' AND b.subject = who.end_user
    UNION ALL
    SELECT b.* FROM budgets b
    JOIN api_keys k ON k.id = who.api_key_id AND k.tenant_id = who.tenant_id
    WHERE b.tenant_id = who.tenant_id AND b.scope = 'key' AND b.subject = k.lookup
"""
"""SQL: the budgets that cover ``who`` (tenant_id, team, end_user, api_key_id), each found by the unique index."""

FOLDED = """
    folded AS (
        DELETE FROM budget_movements m USING locked WHERE m.period_id = locked.id
        RETURNING m.period_id, m.reserved_delta, m.spent_delta
    ), balance AS MATERIALIZED (
        SELECT l.id, l.budget_id, l.period_start, l.limit_usd,
               l.spent_usd + coalesce(sum(f.spent_delta), 0) AS spent_usd,
               l.reserved_usd + coalesce(sum(f.reserved_delta), 0) AS reserved_usd,
               coalesce(sum(f.spent_delta), 0) AS spent_delta,
               coalesce(sum(f.reserved_delta), 0) AS reserved_delta
        FROM locked l LEFT JOIN folded f ON f.period_id = l.id
        GROUP BY l.id, l.budget_id, l.period_start, l.limit_usd, l.spent_usd, l.reserved_usd
    )"""
"""SQL: folds the movements of the periods in ``locked`` (rows of budget_periods, locked by the same statement) and
gives their balances. A movement that another transaction folded meanwhile is not found again: a row is deleted once,
and the lock brought the period's newest version."""


def raised(event: str, condition: str, source: str = "balance") -> str:
    """SQL: records an event once per period and limit for the rows of ``source`` that meet a condition."""
    return f"""
        INSERT INTO events (id, tenant_id, type, payload, once_key)
        SELECT gen_random_uuid(), b.tenant_id, '{event}',
               jsonb_build_object('budget_id', 'budget_' || replace(b.id::text, '-', ''), 'scope', b.scope,
                   'subject', b.subject, 'window', b."window", 'period_start', p.period_start,
                   'limit_usd', p.limit_usd::text, 'spent_usd', {usd_text("p.spent_usd")},
                   'reserved_usd', {usd_text("p.reserved_usd")}, 'alert_at', b.alert_at),
               '{event}:' || p.id || ':' || p.limit_usd
        FROM {source} p JOIN budgets b ON b.id = p.budget_id
        WHERE {condition}
        ON CONFLICT (once_key) DO NOTHING"""


ALERTED = raised("budget.alert", "p.spent_usd > 0 AND p.spent_usd >= b.alert_at * p.limit_usd")
EXHAUSTED = raised("budget.exhausted", "p.spent_usd > 0 AND p.spent_usd >= p.limit_usd")

MOVED = """
        INSERT INTO budget_movements (period_id, reserved_delta, spent_delta)
        SELECT p.id, -sum(s.released), sum(s.spent)
        FROM settled s, unnest(s.budget_periods) AS covered(period_id)
        JOIN budget_periods p ON p.id = covered.period_id
        GROUP BY p.id
        HAVING sum(s.released) <> 0 OR sum(s.spent) <> 0"""
"""SQL: appends what ``settled`` (budget_periods, released, spent) means for budgets that still exist."""

FOLD = text(f"""
    WITH locked AS MATERIALIZED (
        SELECT p.* FROM budget_periods p
        WHERE p.id IN (SELECT period_id FROM budget_movements)
        ORDER BY p.id
        FOR NO KEY UPDATE SKIP LOCKED
    ), {FOLDED}, alerted AS ({ALERTED}), exhausted AS ({EXHAUSTED})
    UPDATE budget_periods p
    SET spent_usd = p.spent_usd + b.spent_delta, reserved_usd = p.reserved_usd + b.reserved_delta
    FROM balance b WHERE p.id = b.id
""")
"""Fold what was settled into the periods that nobody is reserving in, and raise the events that are due."""

SWEEP_ORPHANS = text("""
    DELETE FROM budget_movements m WHERE NOT EXISTS (SELECT FROM budget_periods p WHERE p.id = m.period_id)
""")
"""Forget the movements of budgets that were deleted."""

OPEN_PERIODS = text(f"""
    WITH asked AS (
        SELECT DISTINCT tenant_id, team, end_user, api_key_id
        FROM json_to_recordset(CAST(:rows AS json)) AS r(tenant_id uuid, team text, end_user text, api_key_id uuid)
    )
    INSERT INTO budget_periods (budget_id, period_start, limit_usd)
    SELECT b.id, {PERIOD_START}, b.limit_usd FROM asked who, LATERAL ({COVERING}) b
    WHERE NOT EXISTS (SELECT FROM budget_periods p WHERE p.budget_id = b.id AND p.period_start = {PERIOD_START})
    ORDER BY b.id
    ON CONFLICT DO NOTHING
""")
"""Begin the current period of every budget that covers these jobs."""

PUT_BUDGET = text("""
    INSERT INTO budgets (id, tenant_id, scope, subject, "window", limit_usd, alert_at)
    VALUES (:id, :tenant_id, :scope, :subject, :window, :limit_usd, :alert_at)
    ON CONFLICT (tenant_id, scope, subject, "window")
        DO UPDATE SET limit_usd = excluded.limit_usd, alert_at = excluded.alert_at
    RETURNING id, (id = :id) AS created
""")
"""Create a budget, or change the limit of the one there is."""

_OF_SUBJECT = """(b.scope = 'team' AND l.team = b.subject OR b.scope = 'user' AND l.end_user = b.subject
                   OR b.scope = 'key' AND l.api_key_id = (SELECT k.id FROM api_keys k WHERE k.lookup = b.subject))"""
_FIRST_DAY = f"CAST({PERIOD_START} AT TIME ZONE 'UTC' AS date)"

PUT_PERIOD = text(f"""
    WITH {PROGRESS}
    INSERT INTO budget_periods (budget_id, period_start, limit_usd, spent_usd)
    SELECT b.id, {PERIOD_START}, b.limit_usd,
           CASE WHEN :created THEN
               (SELECT coalesce(sum(s.cost_usd), 0) FROM (
                    SELECT l.cost_usd FROM spend_days l
                    WHERE b.scope = 'tenant' AND l.tenant_id = b.tenant_id AND l.day >= {_FIRST_DAY}
                    UNION ALL
                    SELECT l.cost_usd FROM usage_days l
                    WHERE {_OF_SUBJECT} AND l.tenant_id = b.tenant_id AND l.day >= {_FIRST_DAY}
                    UNION ALL
                    SELECT l.cost_usd FROM ledger_entries l
                    WHERE l.tenant_id = b.tenant_id AND l.created_at >= greatest({PERIOD_START}, progress.rolled_until)
                      AND (b.scope = 'tenant' OR {_OF_SUBJECT})
                ) s)
           ELSE 0 END
    FROM progress, budgets b WHERE b.id = :id
    ON CONFLICT (budget_id, period_start) DO UPDATE SET limit_usd = excluded.limit_usd
    RETURNING id
""")
"""Give a budget's current period its limit; the first period of a new budget starts with what the ledger has."""

RAISE_DUE = text(f"""
    WITH balance AS MATERIALIZED (SELECT * FROM budget_periods WHERE id = :period_id),
         alerted AS ({ALERTED})
    {EXHAUSTED}
""")
"""Raise the events that a changed limit makes due."""

RESETS_AT = f"""CASE b."window" WHEN 'day' THEN {PERIOD_START} + interval '1 day'
                                WHEN 'month' THEN {PERIOD_START} + interval '1 month' END"""
"""SQL: when the next period of a budget ``b`` begins (sessions run in UTC); null for a total."""

_VIEW = f"""
    SELECT b.id, b.scope, b.subject, b."window", b.limit_usd, b.alert_at,
           coalesce(p.spent_usd, 0) + coalesce(m.spent, 0) AS spent_usd,
           coalesce(p.reserved_usd, 0) + coalesce(m.reserved, 0) AS reserved_usd,
           {RESETS_AT} AS resets_at
    FROM budgets b
    LEFT JOIN budget_periods p ON p.budget_id = b.id AND p.period_start = {PERIOD_START}
    LEFT JOIN LATERAL (SELECT sum(spent_delta) AS spent, sum(reserved_delta) AS reserved
                       FROM budget_movements WHERE period_id = p.id) m ON true
    WHERE b.tenant_id = :tenant_id
"""

SELECT_BUDGET = text(f"{_VIEW} AND b.id = :id")
"""A tenant's budget with the balance of its current period."""

LIST_BUDGETS = text(f"{_VIEW} AND (CAST(:after AS uuid) IS NULL OR b.id > :after) ORDER BY b.id LIMIT :limit")
"""A page of a tenant's budgets, oldest first; ``after`` is the last id of the page before."""

DELETE_BUDGET = text("DELETE FROM budgets WHERE id = :id AND tenant_id = :tenant_id RETURNING id")
"""Forget a tenant's budget and its periods; jobs that reserved in them settle in the others."""

SELECT_KEY_OF_TENANT = text("SELECT id FROM api_keys WHERE lookup = :subject AND tenant_id = :tenant_id")
"""The tenant's API key with this lookup part."""
