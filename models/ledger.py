"""The ledger: immutable money lines, one per attempt that used tokens.

It outlives the jobs it speaks of, so it refers to them by id without a foreign key.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, Index, func
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Usd


class LedgerEntry(Base):
    """What one attempt cost, with the prices used, in USD per million tokens.

    Its key is the attempt, which is what makes a settlement happen once.
    """

    __tablename__ = "ledger_entries"
    __table_args__ = (Index(None, "tenant_id", "created_at"),)

    attempt_id: Mapped[UUID] = mapped_column(primary_key=True)
    job_id: Mapped[UUID]
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"))
    llm: Mapped[str]
    input_tokens: Mapped[int]
    output_tokens: Mapped[int]
    input_price: Mapped[Usd]
    output_price: Mapped[Usd]
    cost_usd: Mapped[Usd]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
