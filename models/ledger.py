"""The ledger: immutable money lines, one per attempt that used tokens.

It outlives the jobs it speaks of, so it refers to them by id without a foreign key.

============  ==============================================================================================
``usage``     what an attempt used, as its worker reported it
``estimate``  the worst case of an attempt whose worker was lost: a provider may have charged it
``reversal``  takes back an estimate, since its attempt reported after all; its numbers are negative
============  ==============================================================================================
"""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, Index, TextClause, func, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Cost, Usd
from models.usage import ATTEMPTS, OF_ATTEMPT, PROGRESS


class LedgerEntry(Base):
    """What one attempt cost and for whom, with the prices used, in USD per million tokens.

    ``cached_input_price`` is null where cached input tokens cost what others do.
    Its key is the attempt, which is what makes a settlement happen once. The lines about a lost attempt,
    ``lost_attempt_id``, have keys that are made from it (:func:`models.usage.entry_id`).
    """

    __tablename__ = "ledger_entries"
    __table_args__ = (Index(None, "tenant_id", "created_at"),)

    attempt_id: Mapped[UUID] = mapped_column(primary_key=True)
    job_id: Mapped[UUID]
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"))
    api_key_id: Mapped[UUID | None]
    team: Mapped[str | None]
    end_user: Mapped[str | None]
    llm: Mapped[str]
    input_tokens: Mapped[int]
    output_tokens: Mapped[int]
    cached_input_tokens: Mapped[int] = mapped_column(server_default="0")
    input_price: Mapped[Usd]
    output_price: Mapped[Usd]
    cached_input_price: Mapped[Usd | None]
    cost_usd: Mapped[Cost]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    kind: Mapped[str] = mapped_column(server_default="usage")
    lost_attempt_id: Mapped[UUID | None]


USAGE_GROUPS = {
    "model": "u.llm",
    "team": "u.team",
    "user": "u.end_user",
    "key": "k.lookup",
    "day": "to_char(u.day, 'YYYY-MM-DD')",
}
"""What usage can be grouped by; days are UTC, keys are named by their lookup part."""

_ENTRY = "CAST(l.created_at AT TIME ZONE 'UTC' AS date), l.llm, l.team, l.end_user, l.api_key_id"

_USED = f"""
    {PROGRESS}, span AS MATERIALIZED (
        SELECT rolled_until, whole_from,
               greatest(whole_from, CASE WHEN CAST(:end AS timestamptz) >= rolled_until THEN 'infinity'
                                         ELSE date_trunc('day', CAST(:end AS timestamptz), 'UTC') END) AS whole_to
        FROM progress, LATERAL (
            SELECT date_trunc('day', CAST(:start AS timestamptz) + interval '1 day' - interval '1 microsecond', 'UTC')
                   AS whole_from) f
    ), entry AS MATERIALIZED (
        SELECT l.* FROM span CROSS JOIN LATERAL (
            SELECT l.* FROM ledger_entries l
            WHERE l.tenant_id = :tenant_id AND l.created_at >= :start AND l.created_at < least(:end, whole_from)
            UNION ALL
            SELECT l.* FROM ledger_entries l
            WHERE l.tenant_id = :tenant_id AND l.created_at < :end
              AND l.created_at >= greatest(whole_from, least(whole_to, rolled_until))
        ) l
    ), repeat AS MATERIALIZED (
        SELECT CAST(r.created_at AT TIME ZONE 'UTC' AS date) AS day, r.llm, r.team, r.end_user, r.api_key_id, r.job_id,
               r.attempt_id, r.created_at
        FROM usage_repeats r
        WHERE r.tenant_id = :tenant_id AND r.created_at >= :start AND r.created_at < :end
        UNION
        SELECT {_ENTRY}, l.job_id, l.attempt_id, l.created_at
        FROM (SELECT DISTINCT job_id FROM entry, span WHERE created_at >= rolled_until) j
        CROSS JOIN LATERAL (
            SELECT l.*, count(*) OVER () AS entries
            FROM attempts a JOIN ledger_entries l ON {OF_ATTEMPT}
            WHERE a.job_id = j.job_id AND l.created_at >= :start AND l.created_at < :end OFFSET 0
        ) l
        WHERE l.entries > 1
    ), used (day, llm, team, end_user, api_key_id, entries, attempts, input_tokens, output_tokens, cost_usd,
             repeats, job_id) AS (
        SELECT d.day, d.llm, d.team, d.end_user, d.api_key_id, d.entries, d.attempts, d.input_tokens, d.output_tokens,
               d.cost_usd, 0, CAST(NULL AS uuid)
        FROM span JOIN usage_days d ON d.tenant_id = :tenant_id
         AND d.day >= CAST(whole_from AT TIME ZONE 'UTC' AS date) AND d.day < CAST(whole_to AT TIME ZONE 'UTC' AS date)
        UNION ALL
        SELECT {_ENTRY}, 1, {ATTEMPTS}, l.input_tokens, l.output_tokens, l.cost_usd, 0, NULL FROM entry l
        UNION ALL
        SELECT r.day, r.llm, r.team, r.end_user, r.api_key_id, 0, 0, 0, 0, 0, 1, r.job_id FROM repeat r
    )"""
"""SQL: what a tenant used from ``:start`` to before ``:end``.

Whole days come from ``usage_days``, up to where these have come; the day in which ``:start`` lies, the day of ``:end``
if it is added up beyond ``:end``, and the last minutes come from the ledger. A job counts once however many entries it
has: ``repeat`` has the entries of jobs with several.
"""


def select_usage(groups: Sequence[str]) -> TextClause:
    """A tenant's usage from ``:start`` to before ``:end``, by names of USAGE_GROUPS; one row without groups.

    ``attempts`` are those that used tokens: only they have an entry. An estimate and its reversal are none together.
    """
    columns = "".join(f'{USAGE_GROUPS[name]} AS "{name}", ' for name in groups)
    numbers = ", ".join(str(place + 1) for place in range(len(groups)))
    grouping = f"GROUP BY {numbers} ORDER BY {numbers}" if groups else ""
    return text(f"""
        WITH {_USED}
        SELECT {columns}coalesce(sum(u.entries) - sum(u.repeats), 0)::bigint + count(DISTINCT u.job_id) AS jobs,
               coalesce(sum(u.attempts), 0)::bigint AS attempts,
               coalesce(sum(u.input_tokens), 0)::bigint AS input_tokens,
               coalesce(sum(u.output_tokens), 0)::bigint AS output_tokens, coalesce(sum(u.cost_usd), 0) AS cost_usd
        FROM used u LEFT JOIN api_keys k ON k.id = u.api_key_id
        {grouping}
    """)  # fixed names only: USAGE_GROUPS refuses any other
