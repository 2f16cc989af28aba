"""Idempotency keys: a request that is sent again with its key finds what it made before."""

import hashlib
from uuid import UUID

import orjson
from sqlalchemy.ext.asyncio import AsyncEngine

from api.openapi import header
from models.database import read_one
from models.errors import FieldProblem, IdempotencyMismatch, ValidationFailed
from models.intake import SELECT_BATCH_BY_KEY

MAX_KEY_LENGTH = 255
KEY_HEADER = header(
    "Idempotency-Key",
    "With the same key and body, what was made first answers, however often the request is sent.",
    minLength=1,
    maxLength=MAX_KEY_LENGTH,
)
"""What the OpenAPI document says of it."""


def check_key(key: str | None) -> str | None:
    """A usable Idempotency-Key, or None when the caller sent none; raises ValidationFailed."""
    if key is None or (1 <= len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable()):
        return key
    message = f"The Idempotency-Key must have 1 to {MAX_KEY_LENGTH} printable ASCII characters."
    raise ValidationFailed(message, param="Idempotency-Key", problems=[FieldProblem("Idempotency-Key", message)])


def digest_of(request: object) -> str:
    """SHA-256 of a JSON value with sorted keys, in hex."""
    return hashlib.sha256(orjson.dumps(request, default=str, option=orjson.OPT_SORT_KEYS)).hexdigest()


def require_same(recorded: str | None, request_hash: str | None) -> None:
    """Raises IdempotencyMismatch when a key's earlier request was another."""
    if recorded != request_hash:
        raise IdempotencyMismatch(
            "This Idempotency-Key was used with another request body; use a new key for a new request.",
            param="Idempotency-Key",
        )


async def batch_of_key(engine: AsyncEngine, tenant_id: UUID, key: str | None, request_hash: str | None) -> UUID | None:
    """The batch that a tenant's key made before; raises IdempotencyMismatch."""
    if key is None:
        return None
    row = await read_one(engine, SELECT_BATCH_BY_KEY, {"tenant_id": tenant_id, "idempotency_key": key})
    if row is None:
        return None
    require_same(row["request_hash"], request_hash)
    found: UUID = row["id"]
    return found
