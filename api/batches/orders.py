"""What passes between the API and the processes that take files in, and how it is written on the way."""

import struct
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
from pydantic import BaseModel

from models.database import dump_json
from models.errors import FieldProblem, HeadraceError
from models.routing import Vitals

LENGTH = struct.Struct("!I")
"""What comes before every message: its length in bytes."""

TOO_MUCH = "The file takes more memory or time to read than is allowed; send it in parts."

_INTERNAL = "internal"
_KINDS = {kind.code: kind for kind in HeadraceError.__subclasses__()}


class Order(BaseModel):
    """What is to be done with a file: from whom it is, its form, and what the API knows of the LLMs."""

    tenant_id: UUID
    api_key_id: UUID
    filename: str
    fields: dict[str, str]
    vitals: dict[str, Vitals]
    database_url: str
    catalog: Path | None
    optional_llms: tuple[str, ...]
    max_rows: int
    idempotency_key: str | None
    request_hash: str | None
    plan: str | None = None
    live_rows: int = 0
    redis_url: str = ""
    rate_limit_timeout_s: float = 0.1


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a file; amounts in USD. ``batch_id`` is None after a dry run, and where the
    idempotency key has made a batch before."""

    batch_id: UUID | None
    rows: int
    distinct: int
    prompt_bytes: int
    worst_usd: Decimal
    route: tuple[str, ...]
    columns: list[str]


class ClerkFailed(Exception):
    """A clerk failed in a way that nobody foresaw; it has logged how."""


def encode_taken(taken: Taken) -> bytes:
    """A reply: this was taken in."""
    return dump_json({"taken": asdict(taken)}).encode()


def encode_refusal(error: HeadraceError) -> bytes:
    """A reply: this was refused."""
    known = {name: getattr(error, name) for name in ("detail", "param", "retry_after_s", "headers", "members")}
    problems = [asdict(problem) for problem in error.problems]
    return dump_json({"refused": {**known, "code": error.code, "problems": problems}}).encode()


def encode_failure() -> bytes:
    """A reply: something went wrong."""
    return dump_json({"refused": {"code": _INTERNAL}}).encode()


def decode_reply(reply: bytes) -> Taken:
    """What was taken in; raises the refusal, or ClerkFailed."""
    content: dict[str, Any] = orjson.loads(reply)  # Any: JSON
    if "taken" in content:
        taken = content["taken"]
        batch_id = None if taken["batch_id"] is None else UUID(taken["batch_id"])
        route = tuple(taken["route"])
        return Taken(**{**taken, "batch_id": batch_id, "route": route, "worst_usd": Decimal(taken["worst_usd"])})
    refused = content["refused"]
    kind = _KINDS.get(refused.pop("code"))
    if kind is None:
        raise ClerkFailed("The clerk failed; its log says how.")
    problems = [FieldProblem(**problem) for problem in refused.pop("problems")]
    raise kind(refused.pop("detail"), problems=problems, **refused)
