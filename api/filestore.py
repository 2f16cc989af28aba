"""Files in Postgres: written chunk by chunk as they come in, read chunk by chunk as they go out.

Each chunk is a statement of its own, so neither a slow sender nor a slow reader holds a transaction or a connection.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import Read, fetch_all, fetch_one, transaction
from models.errors import NotFound, Unavailable
from models.file import (
    ADD_CHUNK,
    BEGIN_FILE,
    CHUNK_BYTES,
    DROP_UPLOAD,
    FINISH_FILE,
    LOCK_STORED,
    SELECT_CHUNK,
    SELECT_STORED,
)
from models.ids import FILE, new_id, to_wire

Resource = dict[str, Any]  # Any: JSON


class Upload:
    """A file that is coming in; it is seen by nobody until :meth:`finish`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.id = new_id()
        self.bytes = 0
        self._engine = engine
        self._tenant_id: UUID | None = None
        self._held = bytearray()
        self._chunks = 0

    async def begin(self, tenant_id: UUID, filename: str, purpose: str) -> None:
        """Begin; end it with :meth:`finish` or :meth:`drop`."""
        self._tenant_id = tenant_id
        params = {"id": self.id, "tenant_id": tenant_id, "filename": filename, "purpose": purpose}
        await fetch_all(self._engine, BEGIN_FILE, params)

    async def write(self, data: bytes) -> None:
        """Add some of the content."""
        self.bytes += len(data)
        self._held += data
        while len(self._held) >= CHUNK_BYTES:
            chunk = bytes(self._held[:CHUNK_BYTES])
            del self._held[:CHUNK_BYTES]
            await self._store(chunk)

    async def finish(self, expires_in_s: int | None, check: Callable[[RowMapping], None] | None = None) -> RowMapping:
        """Make it a file: its row. ``check`` is shown what the tenant has stored (SELECT_STORED), and raises where this
        file is too much; files that come in at the same time are checked one after another."""
        if self._held:
            await self._store(bytes(self._held))
        params = {"id": self.id, "bytes": self.bytes, "expires_in_s": expires_in_s}
        if check is None:
            row = await fetch_one(self._engine, FINISH_FILE, params)
        else:
            tenant = {"tenant_id": self._tenant_id}
            async with transaction(self._engine) as connection:
                await connection.execute(LOCK_STORED, tenant)
                check((await connection.execute(SELECT_STORED, tenant)).mappings().one())
                row = (await connection.execute(FINISH_FILE, params)).mappings().one_or_none()
        if row is None:
            raise _swept()
        return row

    async def drop(self) -> None:
        """Forget it; what cannot be forgotten now, while Postgres is away, is swept away later."""
        with suppress(SQLAlchemyError, OSError):
            await fetch_all(self._engine, DROP_UPLOAD, {"id": self.id})

    async def _store(self, chunk: bytes) -> None:
        params = {"id": self.id, "number": self._chunks, "data": chunk}
        if await fetch_one(self._engine, ADD_CHUNK, params) is None:
            raise _swept()
        self._chunks += 1


async def stored_chunks(read: Read, file_id: UUID, size: int) -> AsyncIterator[bytes]:
    """The content of a stored file; raises NotFound when it is deleted meanwhile."""
    for number in range(-(-size // CHUNK_BYTES)):
        rows = await read(SELECT_CHUNK, {"id": file_id, "number": number})
        if not rows:
            raise NotFound("The file was deleted while it was read.")
        yield bytes(rows[0]["data"])


def file_resource(row: RowMapping) -> Resource:
    """OpenAI's file object."""
    expires_at = row["expires_at"]
    return {
        "id": to_wire(FILE, row["id"]),
        "object": "file",
        "bytes": row["bytes"],
        "created_at": int(row["created_at"].timestamp()),
        "expires_at": None if expires_at is None else int(expires_at.timestamp()),
        "filename": row["filename"],
        "purpose": row["purpose"],
        "status": "processed",
        "status_details": None,
    }


def _swept() -> Unavailable:
    return Unavailable("The upload was not gone on with in time; send the file again.", retry_after_s=1)
