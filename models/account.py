"""Who pays and who calls: tenants and their API keys.

A key is ``hr_<lookup>_<secret>``: the lookup part finds its row, the secret part has 192 random bits and
is stored as its SHA-256, for which a fast hash is right at full entropy.
"""

import asyncio
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, Executable, ForeignKey, RowMapping, Select, func, select, update
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import Text

from models.base import Base, PrimaryId
from models.database import create_engine, fetch_one, read_one
from models.ids import new_id

DEVELOPMENT_TENANT = "development"
_KEY = re.compile(r"hr_([0-9a-z]{1,64})_([0-9a-z]{1,128})")


class Tenant(Base):
    """Who pays; ``weight`` is its share when tenants compete for a queue."""

    __tablename__ = "tenants"
    __table_args__ = (CheckConstraint("weight > 0", name="weight_positive"),)

    id: Mapped[PrimaryId]
    name: Mapped[str] = mapped_column(unique=True)
    weight: Mapped[int] = mapped_column(server_default="1")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ApiKey(Base):
    """Who calls; the key itself is shown once and never stored."""

    __tablename__ = "api_keys"

    id: Mapped[PrimaryId]
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)
    lookup: Mapped[str] = mapped_column(unique=True)
    secret_hash: Mapped[bytes]
    name: Mapped[str]
    plan: Mapped[str | None]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key at its making: the text for its owner, and what is stored."""

    text: str
    lookup: str
    secret_hash: bytes


def generate_key() -> NewKey:
    """A new random API key."""
    lookup, secret = secrets.token_hex(6), secrets.token_hex(24)
    return NewKey(f"hr_{lookup}_{secret}", lookup, _hash(secret))


def split_key(text: str) -> tuple[str, str] | None:
    """The lookup and secret parts of a key's text, or None when it is not one."""
    found = _KEY.fullmatch(text)
    return (found[1], found[2]) if found else None


def secret_matches(secret: str, secret_hash: bytes) -> bool:
    """Whether a secret is the one stored, compared in constant time."""
    return hmac.compare_digest(_hash(secret), secret_hash)


def select_live_key(lookup: str) -> Select[tuple[ApiKey]]:
    """The columns of a key that is neither revoked nor past its expiry."""
    return select(ApiKey.__table__).where(
        ApiKey.lookup == lookup,
        ApiKey.revoked_at.is_(None),
        (ApiKey.expires_at.is_(None)) | (ApiKey.expires_at > func.now()),
    )


async def find_key(engine: AsyncEngine, text: str) -> RowMapping | None:
    """The row of a live key by its full text, or None."""
    parts = split_key(text)
    if parts is None:
        return None
    row = await read_one(engine, select_live_key(parts[0]))
    return row if row is not None and secret_matches(parts[1], row["secret_hash"]) else None


async def create_tenant(engine: AsyncEngine, name: str) -> UUID:
    """The id of the tenant of that name, made if it does not exist."""
    statement = insert(Tenant).values(id=new_id(), name=name)
    statement = statement.on_conflict_do_update(index_elements=[Tenant.name], set_={"name": name})
    row = await fetch_one(engine, statement.returning(Tenant.id))
    assert row is not None  # an upsert always returns its row
    return UUID(str(row["id"]))


async def create_key(engine: AsyncEngine, tenant_id: UUID, name: str, plan: str | None = None) -> str:
    """Make an API key for a tenant and return its text, which cannot be had again; no plan is no rate limit."""
    key = generate_key()
    values = {"id": new_id(), "tenant_id": tenant_id, "name": name, "lookup": key.lookup, "plan": plan}
    await fetch_one(engine, insert(ApiKey).values(**values, secret_hash=key.secret_hash))
    return key.text


def select_keys(tenant: str | None) -> Executable:
    """What may be shown of every key, or of a tenant's, oldest first."""
    statement = select(
        ApiKey.lookup,
        Tenant.name.label("tenant"),
        ApiKey.name,
        ApiKey.plan,
        ApiKey.created_at,
        ApiKey.expires_at,
        ApiKey.revoked_at,
    ).join_from(ApiKey, Tenant)
    if tenant is not None:
        statement = statement.where(Tenant.name == tenant)
    return statement.order_by(ApiKey.created_at, ApiKey.id)


async def revoke_key(engine: AsyncEngine, lookup: str) -> bool:
    """End a key for good; False when there is none of that lookup part. A key that has ended stays as it is."""
    revoked_at = func.coalesce(ApiKey.revoked_at, func.now())
    return await _change_key(engine, lookup, {"revoked_at": revoked_at})


async def change_plan(engine: AsyncEngine, lookup: str, plan: str | None) -> bool:
    """Give a key another plan, or none; False when there is none of that lookup part."""
    return await _change_key(engine, lookup, {"plan": plan})


async def _change_key(engine: AsyncEngine, lookup: str, values: dict[str, Any]) -> bool:  # Any: SQL or values
    statement = update(ApiKey).where(ApiKey.lookup == lookup).values(values).returning(ApiKey.id)
    return await fetch_one(engine, statement) is not None


def ensure_development_tenant(database_url: str, existing_key: str | None) -> str:
    """A working key of the development tenant: the existing one if it still is, else a new one."""

    async def ensure() -> str:
        engine = create_engine(database_url, name="setup", pool_size=1)
        try:
            if existing_key and await find_key(engine, existing_key):
                return existing_key
            tenant_id = await create_tenant(engine, DEVELOPMENT_TENANT)
            return await create_key(engine, tenant_id, "development")
        finally:
            await engine.dispose()

    return asyncio.run(ensure())


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
