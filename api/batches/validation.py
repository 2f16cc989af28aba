"""Validating a batch: its input file is read, and the batch begins with all its rows or fails with all its problems."""

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.batches.quotas import RowQuota
from api.batches.requests import Error, RequestReader, error_of
from api.batches.rows import BatchDraft, write_batch
from api.errors import not_storable
from api.filestore import stored_chunks
from api.ratelimits import RateLimiter
from models.catalog import Catalog
from models.database import WAITING_HELPS, classify, dump_json, fetch_all, is_unstorable, read_all, read_one
from models.errors import HeadraceError, Unavailable
from models.routing import Router
from models.validation import LOCK_UNREAD, REFUSE_BATCH, SELECT_LIVE_ROWS, SELECT_TO_READ, UNLOCK_UNREAD
from models.wakeups import Wakeups

Row = Mapping[Any, Any]  # Any: columns of several types

log = structlog.get_logger()


async def validate(
    engine: AsyncEngine,
    batch_id: UUID,
    catalog: Catalog,
    router: Router,
    wakeups: Wakeups,
    limiter: RateLimiter,
) -> None:
    """Read a batch's file, unless another process does; takes three connections meanwhile.

    When Postgres goes away in the middle, the batch stays as it was, for anyone to begin anew.
    """
    async with engine.connect() as connection:
        if not (await connection.execute(LOCK_UNREAD, {"id": batch_id})).scalar_one():
            return
        try:
            row = await read_one(engine, SELECT_TO_READ, {"id": batch_id})
            if row is not None:
                quota = await _row_quota(engine, row, limiter)
                errors = await _read(engine, row, catalog, router, wakeups, quota)
                if errors:
                    await fetch_all(engine, REFUSE_BATCH, {"id": batch_id, "errors": dump_json(errors)})
        finally:
            await _unlock(connection, batch_id)


async def _row_quota(engine: AsyncEngine, row: Row, limiter: RateLimiter) -> RowQuota:
    plan = limiter.plan(row["plan"])
    live_rows = 0
    if plan is not None and plan.batch_rows is not None:
        (live,) = await read_all(engine, SELECT_LIVE_ROWS, {"tenant_id": row["tenant_id"]})
        live_rows = int(live["rows"])
    return RowQuota(limiter, row["plan"], row["api_key_id"], live_rows)


async def _read(
    engine: AsyncEngine, row: Row, catalog: Catalog, router: Router, wakeups: Wakeups, quota: RowQuota
) -> list[Error]:
    """Write the batch's rows; what is wrong with its file otherwise."""
    if row["file_bytes"] is None:
        return [error_of("not_found", "The input file is deleted or has expired.", "input_file_id", None)]
    reader = RequestReader(draft := _draft(row), catalog, router, quota)
    content = stored_chunks(partial(read_all, engine), row["input_file_id"], row["file_bytes"])
    written = None
    try:
        written = await write_batch(engine, draft, reader.chunks(content), wakeups, distinct=True)
    except Unavailable:
        raise
    except HeadraceError as error:
        return reader.errors or [error_of(error.code, error.detail, error.param, None)]
    except Exception as error:
        if classify(error) in WAITING_HELPS:
            raise
        if is_unstorable(error):
            refusal = not_storable()
            return [error_of(refusal.code, refusal.detail.replace("request", "file"), None, None)]
        log.exception("batch.not_validated", batch_id=row["id"].hex)
        return [error_of("internal", "Something went wrong here; the error has been logged.", None, None)]
    finally:
        if written is None:
            await quota.give_back()
    return []


def _draft(row: Row) -> BatchDraft:
    return BatchDraft(
        id=row["id"],
        tenant_id=row["tenant_id"],
        api_key_id=row["api_key_id"],
        endpoint=row["endpoint"],
        completion_window=row["completion_window"],
        expires_in=row["expires_in"],
        waits=True,
        name=row["name"],
        dedupe=row["dedupe"],
        priority=row["priority"],
        max_parallel=row["max_parallel"],
        end_user=row["end_user"],
        team=row["team"],
        labels=row["labels"],
        input_file_id=row["input_file_id"],
        output_expires_s=row["output_expires_s"],
    )


async def _unlock(connection: AsyncConnection, batch_id: UUID) -> None:
    """Give the lock back; a connection that broke has lost it anyway."""
    with suppress(SQLAlchemyError, OSError):
        await connection.execute(UNLOCK_UNREAD, {"id": batch_id})
