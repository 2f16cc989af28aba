"""What every table shares: metadata with named constraints, and column types."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

from sqlalchemy import DateTime, MetaData, Numeric, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, mapped_column

from models.ids import new_id

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

Json = dict[str, Any]  # Any: JSON of the caller's or a provider's making, checked at the edge
PrimaryId = Annotated[UUID, mapped_column(primary_key=True, default=new_id)]
Usd = Annotated[Decimal, mapped_column(Numeric(18, 6))]
"""A price, a limit or a reservation, in millionths of a USD."""
Cost = Annotated[Decimal, mapped_column(Numeric())]
"""What something cost, with all the digits that it has: tokens times millionths of a USD per million, so twelve."""


def usd_text(amount: str) -> str:
    """SQL: an amount as :func:`models.pricing.as_wire` writes it: with six decimals, or more where it has more."""
    return f"round({amount}, greatest(6, scale(trim_scale({amount}))))::text"


class Base(DeclarativeBase):
    """Parent of the tables; times carry their zone, dictionaries are JSONB."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it as a class attribute
        datetime: DateTime(timezone=True),
        Json: JSONB,
        str: Text,
        UUID: Uuid,
    }
