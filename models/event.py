"""Events: facts that a tenant, or who runs the platform, may want to hear of; each is recorded once.

===================  =====================================================================================
``budget.alert``     a period's spent money reached ``alert_at`` (80 %) of its limit
``budget.exhausted`` it reached the limit, or, past ``alert_at``, a job was refused for want of money
``spend.anomaly``    a day's spent money exceeds twice the daily average of the 7 days before
``batch.paused``      a batch was paused: ``pause_reason`` is ``requested`` or ``budget_exhausted``
``batch.resumed``     it goes on
``batch.completed``   every row of a batch has ended; the payload has the counts, and what was ended how
``batch.expired``     its deadline came first; finished rows stay
``batch.cancelled``   it was cancelled and nothing of it runs any more
``worker.memory``    the platform's own: the memory of a worker's machine crossed a threshold, up or down
===================  =====================================================================================

The platform's own events have no tenant; a query for a tenant's events must ask for the tenant.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Json, PrimaryId, usd_text
from models.usage import PROGRESS


class Event(Base):
    """A fact about a tenant's account, or, without a tenant, about the platform; ``once_key`` keeps the same fact from
    being recorded twice."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "tenant_id", "created_at"),)

    id: Mapped[PrimaryId]
    tenant_id: Mapped[UUID | None] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    type: Mapped[str]
    payload: Mapped[Json]
    once_key: Mapped[str | None] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


RECORD_PLATFORM_EVENT = text("""
    INSERT INTO events (id, type, payload) VALUES (:id, :type, CAST(:payload AS jsonb)) ON CONFLICT (id) DO NOTHING
""")
"""Record an event of the platform's own; the id keeps it from being recorded twice."""

_TODAY = "date_trunc('day', now(), 'UTC')"

RAISE_ANOMALIES = text(f"""
    WITH {PROGRESS}, spent_today AS (
        SELECT t.id AS tenant_id, coalesce(d.cost_usd, 0) + coalesce(s.spent, 0) AS spent, p.rolled_until
        FROM progress p
        CROSS JOIN tenants t
        LEFT JOIN spend_days d ON d.tenant_id = t.id AND d.day = CAST(now() AT TIME ZONE 'UTC' AS date)
        CROSS JOIN LATERAL (
            SELECT sum(cost_usd) AS spent FROM ledger_entries l
            WHERE l.tenant_id = t.id AND l.created_at >= greatest({_TODAY}, p.rolled_until)) s
        WHERE coalesce(d.cost_usd, 0) + coalesce(s.spent, 0) > 0
          AND (SELECT min(l.created_at) FROM ledger_entries l WHERE l.tenant_id = t.id) < {_TODAY} - interval '6 days'
          AND NOT EXISTS (SELECT FROM events e WHERE e.once_key =
                          'spend.anomaly:' || t.id || ':' || to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD'))
    )
    INSERT INTO events (id, tenant_id, type, payload, once_key)
    SELECT gen_random_uuid(), d.tenant_id, 'spend.anomaly',
           jsonb_build_object('day', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD'),
               'spent_usd', {usd_text("d.spent")}, 'daily_average_usd', round(b.average, 6)::text),
           'spend.anomaly:' || d.tenant_id || ':' || to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD')
    FROM spent_today d, LATERAL (
        SELECT coalesce(sum(w.cost_usd), 0) / 7 AS average
        FROM (
            SELECT a.cost_usd FROM spend_days a
            WHERE a.tenant_id = d.tenant_id AND a.day < CAST(now() AT TIME ZONE 'UTC' AS date)
              AND a.day >= CAST(now() AT TIME ZONE 'UTC' AS date) - 7
            UNION ALL
            SELECT l.cost_usd FROM ledger_entries l
            WHERE l.tenant_id = d.tenant_id AND l.created_at < {_TODAY}
              AND l.created_at >= greatest({_TODAY} - interval '7 days', d.rolled_until)
        ) w) b
    WHERE d.spent > 2 * b.average AND b.average > 0
    ON CONFLICT (once_key) DO NOTHING
    RETURNING tenant_id
""")
"""Raise ``spend.anomaly`` for every tenant whose day is out of proportion; days are UTC, and a tenant without a
week of history has no average to exceed. Sums are those of ``spend_days`` and of what is not added up there yet."""
