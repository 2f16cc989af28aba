"""Who is calling: API keys, looked up in Postgres and remembered for a few seconds."""

import asyncio
import hashlib
from dataclasses import dataclass
from time import monotonic
from uuid import UUID

from cachetools import TLRUCache
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import Request

from api.hints import missing_key, wrong_key
from models.account import find_key
from models.errors import InvalidApiKey

MAX_REMEMBERED = 10_000
_MISS_S = 1.0
_MAX_KEY_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Caller:
    """The tenant that pays and the key that calls."""

    tenant_id: UUID
    api_key_id: UUID
    scopes: frozenset[str]
    plan: str | None = None


class Authenticator:
    """Answers who presents a key.

    A key is trusted for ``cache_s`` seconds after Postgres was asked about it, so a revocation takes that
    long to act in every API process. An unknown key is remembered for at most a second, so that a new one
    works soon and a client in a loop does not become a query in a loop. The cache holds hashes of keys, never
    keys.
    """

    def __init__(self, engine: AsyncEngine, *, cache_s: float) -> None:
        self._engine = engine
        miss_s = min(_MISS_S, cache_s)
        self._known: TLRUCache[bytes, Caller | None] = TLRUCache(
            MAX_REMEMBERED, ttu=lambda _, caller, now: now + (cache_s if caller else miss_s), timer=monotonic
        )
        self._asking: dict[bytes, asyncio.Task[Caller | None]] = {}

    async def authenticate(self, request: Request) -> Caller:
        """The caller of a request by its ``Authorization: Bearer`` header; raises InvalidApiKey."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise InvalidApiKey(missing_key(request.headers, request.query_params))
        if len(key) > _MAX_KEY_LENGTH:
            raise InvalidApiKey("The API key is not one of this service.")
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        try:
            caller = self._known[digest]
        except KeyError:
            caller = await self._ask(digest, key)
        if caller is None:
            raise InvalidApiKey(wrong_key(key))
        return caller

    async def _ask(self, digest: bytes, key: str) -> Caller | None:
        """Ask Postgres, once for all who present the same key meanwhile."""
        task = self._asking.get(digest)
        if task is None:
            task = self._asking[digest] = asyncio.create_task(self._look_up(digest, key))
            task.add_done_callback(lambda done: self._asked(digest, done))
        return await asyncio.shield(task)

    def _asked(self, digest: bytes, task: asyncio.Task[Caller | None]) -> None:
        del self._asking[digest]
        if not task.cancelled():
            task.exception()  # seen, even if all who asked have hung up

    async def _look_up(self, digest: bytes, key: str) -> Caller | None:
        row = await find_key(self._engine, key)
        caller = Caller(row["tenant_id"], row["id"], frozenset(row["scopes"]), row["plan"]) if row else None
        self._known[digest] = caller
        return caller
