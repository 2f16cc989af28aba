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


class LedgerEntry(Base):
    """What one attempt cost and for whom, with the prices used, in USD per million tokens.

    ``cached_input_price`` is null where cached input tokens cost what others do.
    Its key is the attempt, which is what makes a settlement happen once. The lines about a lost attempt,
    ``lost_attempt_id``, have keys that are made from it (:func:`entry_id`).
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


def entry_id(kind: str, attempt_id: str) -> str:
    """SQL: the key of the ``estimate`` or the ``reversal`` of an attempt, which can be entered once."""
    return f"CAST(md5('{kind}' || CAST({attempt_id} AS text)) AS uuid)"


USAGE_GROUPS = {
    "model": "l.llm",
    "team": "l.team",
    "user": "l.end_user",
    "key": "k.lookup",
    "day": "to_char(l.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
}
"""What usage can be grouped by; days are UTC, keys are named by their lookup part."""


def select_usage(groups: Sequence[str]) -> TextClause:
    """A tenant's usage from ``:start`` to before ``:end``, by names of USAGE_GROUPS; one row without groups.

    ``attempts`` are those that used tokens: only they have an entry. An estimate and its reversal are none together.
    """
    columns = "".join(f'{USAGE_GROUPS[name]} AS "{name}", ' for name in groups)
    numbers = ", ".join(str(place + 1) for place in range(len(groups)))
    grouping = f"GROUP BY {numbers} ORDER BY {numbers}" if groups else ""
    return text(f"""
        SELECT {columns}count(DISTINCT l.job_id) AS jobs,
               coalesce(sum(CASE l.kind WHEN 'reversal' THEN -1 ELSE 1 END), 0) AS attempts,
               coalesce(sum(l.input_tokens), 0) AS input_tokens, coalesce(sum(l.output_tokens), 0) AS output_tokens,
               coalesce(sum(l.cost_usd), 0) AS cost_usd
        FROM ledger_entries l LEFT JOIN api_keys k ON k.id = l.api_key_id
        WHERE l.tenant_id = :tenant_id AND l.created_at >= :start AND l.created_at < :end
        {grouping}
    """)  # fixed names only: USAGE_GROUPS refuses any other
