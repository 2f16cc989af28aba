"""Writing a batch: its rows by COPY in committed slices, then its reservation and its beginning in one transaction.

Rows come in chunks of Postgres's text form, so that a million of them pass through without being held anywhere. No
transaction lasts long, since Postgres can clean up behind none while one is open: the queue's tables would grow.
"""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from time import monotonic
from typing import Any, cast
from uuid import UUID

from psycopg import AsyncConnection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection as SqlConnection
from sqlalchemy.ext.asyncio import AsyncEngine

from api.reserving import budget_exceeded
from models.batch import REFUSED_ROUTE
from models.budget import OPEN_PERIODS
from models.database import Params, dump_json, fetch_all, fetch_one, transaction
from models.errors import CostCapExceeded, FieldProblem, HeadraceError, Unavailable, ValidationFailed
from models.ids import new_id
from models.intake import (
    ABANDON_INTAKE,
    BEGIN_BATCH,
    BEGIN_INTAKE,
    COPY_ROWS,
    COUNT_REFUSED,
    END_INTAKE,
    FLUSH_LATER,
    FORGET_INTAKE,
    INSERT_BATCH,
    MARK_SAME,
    RENEW_INTAKE,
    SELECT_REPEATED,
    SUM_ROWS,
    SWEEP_ROWS,
    TAKE_TIME,
)
from models.pricing import as_wire
from models.reservation import ADD_RESERVED, LOCK_BALANCES, RECORD_JOBS, Balance, Refusal, balances_by_payer
from models.storable import MAX_MESSAGE, storable_text
from models.wakeups import DUE, Wakeups

MAX_PROBLEMS = 100
_SLICE_ROWS, _SLICE_BYTES, _SLICE_S = 50_000, 16 << 20, 1.0
"""A slice ends with the chunk that reaches one of these."""

_SWEPT_ROWS = 10_000
_CELL, _ROW = "\x1f", "\x1e"


@dataclass(slots=True)
class BatchDraft:
    """Everything of a batch that is not a row; columns as in :class:`models.batch.Batch`.

    ``expires_in`` is the completion window in seconds. ``waits``: the batch is recorded already, as ``validating``.
    """

    tenant_id: UUID
    api_key_id: UUID
    endpoint: str
    completion_window: str
    expires_in: float
    id: UUID = field(default_factory=new_id)
    waits: bool = False
    name: str | None = None
    model: str | None = None
    routes: list[dict[str, Any]] = field(default_factory=list)  # Any: JSON
    request: dict[str, Any] = field(default_factory=dict)  # Any: JSON
    columns: Sequence[str] | None = None
    template: list[dict[str, str | int]] | None = None
    dialect: dict[str, Any] | None = None  # Any: JSON
    dedupe: bool = False
    priority: int = 1
    max_parallel: int | None = None
    callback_url: str | None = None
    end_user: str | None = None
    team: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    input_file_id: UUID | None = None
    output_expires_s: int | None = None
    max_cost_usd: Decimal | None = None
    idempotency_key: str | None = None
    request_hash: str | None = None
    refused_rows: int = 0


@dataclass(slots=True)
class Row:
    """A row to write; ``number`` counts from 1, ``line`` is where it begins in its file.

    It has ``cells`` for the batch's template, or a ``request`` of its own (:func:`refused_row` makes one that never
    runs). ``digest`` tells equal requests.
    """

    number: int
    line: int
    custom_id: str | None = None
    route: int = 0
    cells: Sequence[str] | None = None
    request: Mapping[str, Any] | None = None  # Any: JSON
    reserved_usd: Decimal = Decimal(0)
    digest: bytes | None = None


def refused_row(number: int, line: int, custom_id: str, error: HeadraceError) -> Row:
    """A row that has failed from the beginning: its answer is what a request of its own would have been told."""
    refusal = {
        "code": error.code,
        "message": storable_text(error.detail, MAX_MESSAGE),
        "param": None if error.param is None else storable_text(error.param, MAX_MESSAGE),
        "retryable": False,
        "status": error.status,
    }
    return Row(number, line, custom_id, REFUSED_ROUTE, request={"refused": refusal})


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows in Postgres's text form, how many they are, and their worst cases' sum in USD."""

    data: bytes
    rows: int
    reserved_usd: Decimal


def encode_rows(batch_id: UUID, rows: Sequence[Row]) -> Chunk:
    """Rows as a chunk to copy."""
    ids = encode_texts([row.custom_id for row in rows])
    cells = encode_cells([row.cells for row in rows])
    requests = encode_texts([None if row.request is None else dump_json(row.request) for row in rows])
    lines = [
        f"{batch_id}\t{row.number}\t{row.line}\t{custom_id}\t{row.route}\t{of_row}\t{request}\t{row.reserved_usd}\t"
        f"{encode_digest(row.digest)}\n"
        for row, custom_id, of_row, request in zip(rows, ids, cells, requests, strict=True)
    ]
    reserved = sum((row.reserved_usd for row in rows), Decimal(0))
    return Chunk("".join(lines).encode(), len(rows), reserved)


def encode_texts(texts: Sequence[str | None]) -> Sequence[str]:
    r"""Texts as COPY's fields; None is ``\N``."""
    given = [text for text in texts if text is not None]
    if not given:
        return ["\\N"] * len(texts)
    escaped = iter(_escape_all(given))
    return [r"\N" if text is None else next(escaped) for text in texts]


def encode_cells(rows: Sequence[Sequence[str] | None]) -> Sequence[str]:
    r"""Each row's cells as a field with an array of texts; None is ``\N``.

    All cells are escaped together: a few passes over one long text, instead of several calls for each cell.
    """
    given = [row for row in rows if row is not None]
    joined = _ROW.join(map(_CELL.join, given))
    if not all(given) or joined.count(_ROW) + 1 > len(given) or joined.count(_CELL) > sum(map(len, given)) - len(given):
        escaped = iter([_quoted(_escape_cells(cell) for cell in row) for row in given])
    else:
        escaped = iter([f'{{"{row}"}}' for row in _escape_cells(joined).replace(_CELL, '","').split(_ROW)])
    if len(given) == len(rows):
        return list(escaped)
    return [r"\N" if row is None else next(escaped) for row in rows]


def encode_digest(digest: bytes | None) -> str:
    """A digest as a field."""
    return "\\N" if digest is None else f"\\\\x{digest.hex()}"


async def write_batch(
    engine: AsyncEngine,
    draft: BatchDraft,
    chunks: AsyncIterable[Chunk],
    wakeups: Wakeups | None = None,
    *,
    distinct: bool = False,
) -> UUID | None:
    """Write a batch with its rows and its reservation; its id.

    None if it waited and was cancelled meanwhile, or if its idempotency key has made one before.

    What ``chunks`` raises leaves nothing that could run; nor do BudgetExceeded, CostCapExceeded and ValidationFailed,
    for custom ids that several rows have and for a batch without rows. ``draft`` is read after the last chunk.
    ``distinct``: the maker of the chunks has checked that custom ids are.
    """
    if draft.waits:
        await _sweep_earlier(engine, draft.id)
    intake = {"id": draft.id, "writer": new_id()}
    try:
        total, reserved = await _copy(engine, intake, chunks)
        if not distinct or draft.dedupe:
            reserved = await _compare(engine, intake, draft, reserved, distinct=distinct)
        check_cost(draft.max_cost_usd, reserved)
        await _begin(engine, intake, draft, total, reserved)
    except BaseException as error:
        with suppress(SQLAlchemyError, OSError):  # a relay sweeps what cannot be swept here
            await _give_up(engine, intake)
        if isinstance(error, _Gone):
            return None
        if isinstance(error, _Short):
            short = [error.refusal.balance.period_id]
            await fetch_all(engine, RECORD_JOBS, {"rows": "[]", "short": short})
            raise budget_exceeded(error.refusal, "batch") from None
        raise
    if wakeups is not None:
        wakeups.announce(DUE)
    return draft.id


class _Gone(Exception):
    """The batch was cancelled while its file was read, or is there already."""


class _Short(Exception):
    """A budget is too short."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__()
        self.refusal = refusal


async def _copy(engine: AsyncEngine, intake: Params, chunks: AsyncIterable[Chunk]) -> tuple[int, Decimal]:
    """Copy the rows, a transaction for each slice; how many there are, and their worst cases' sum."""
    total, reserved = 0, Decimal(0)
    rest = aiter(chunks)
    first: Chunk | None = await anext(rest, None)
    while first is not None:
        async with transaction(engine) as connection:
            await connection.execute(TAKE_TIME)
            await connection.execute(FLUSH_LATER)
            if not total:
                await connection.execute(BEGIN_INTAKE, intake)
            elif (await connection.execute(RENEW_INTAKE, intake)).first() is None:
                raise _given_up()
            slice_ = await _copy_slice(connection, first, rest)
        total += slice_.rows
        reserved += slice_.reserved_usd
        first = await anext(rest, None)
    if not total:
        message = "There are no rows in the file."
        raise ValidationFailed(message, param="file", problems=[FieldProblem("file", message)])
    return total, reserved


async def _copy_slice(connection: SqlConnection, first: Chunk, rest: AsyncIterator[Chunk]) -> Chunk:
    """Copy a chunk and those that follow, up to the limits of a slice; what it came to, without the data."""
    raw = await connection.get_raw_connection()
    driver = cast(AsyncConnection, raw.driver_connection)
    rows, reserved, size = 0, Decimal(0), 0
    until = monotonic() + _SLICE_S
    chunk: Chunk | None = first
    async with driver.cursor() as cursor, cursor.copy(COPY_ROWS) as copy:
        while chunk is not None:
            await copy.write(chunk.data)
            rows += chunk.rows
            reserved += chunk.reserved_usd
            size += len(chunk.data)
            if rows >= _SLICE_ROWS or size >= _SLICE_BYTES or monotonic() >= until:
                break
            chunk = await anext(rest, None)
    return Chunk(b"", rows, reserved)


async def _compare(
    engine: AsyncEngine, intake: Params, draft: BatchDraft, reserved: Decimal, *, distinct: bool
) -> Decimal:
    """Compare the rows with one another, in a transaction of its own; the worst cases' sum of those that will run."""
    async with transaction(engine) as connection:
        await connection.execute(TAKE_TIME)
        if (await connection.execute(RENEW_INTAKE, intake)).first() is None:
            raise _given_up()
        if not distinct:
            await _require_distinct(connection, draft.id)
        if draft.dedupe:
            await connection.execute(MARK_SAME, {"id": draft.id})
            reserved = (await connection.execute(SUM_ROWS, {"id": draft.id})).scalar_one()
    return reserved


async def _begin(engine: AsyncEngine, intake: Params, draft: BatchDraft, total: int, reserved: Decimal) -> None:
    """Reserve for the whole batch and record it; raises _Short and _Gone."""
    async with transaction(engine) as connection:
        if (await connection.execute(END_INTAKE, intake)).first() is None:
            raise _given_up()
        periods = await _reserve(connection, draft, reserved)
        record = BEGIN_BATCH if draft.waits else INSERT_BATCH
        if (await connection.execute(record, _columns(draft, total, reserved, periods))).first() is None:
            raise _Gone
        if draft.refused_rows:
            await connection.execute(COUNT_REFUSED, {"id": draft.id, "rows": draft.refused_rows})


async def _sweep_earlier(engine: AsyncEngine, batch_id: UUID) -> None:
    """Delete what an earlier reader of the batch's file wrote, who is dead: the caller holds the batch's lock."""
    if not await fetch_all(engine, ABANDON_INTAKE, {"id": batch_id, "writer": None}):
        return
    while (swept := await fetch_one(engine, SWEEP_ROWS, {"id": batch_id, "rows": _SWEPT_ROWS})) and swept["rows"]:
        pass


async def _give_up(engine: AsyncEngine, intake: Params) -> None:
    """Give up the rows that were written, and delete them if they are few; a relay deletes the others."""
    if await fetch_all(engine, ABANDON_INTAKE, intake):
        await fetch_all(engine, SWEEP_ROWS, {"id": intake["id"], "rows": _SWEPT_ROWS})
        await fetch_all(engine, FORGET_INTAKE, {"id": intake["id"]})


def _given_up() -> Unavailable:
    return Unavailable("The file was not read to its end in time; send it again.", retry_after_s=1)


def check_cost(most: Decimal | None, worst: Decimal) -> None:
    """Refuse a batch if its worst case costs more than its caller allows; raises CostCapExceeded."""
    if most is not None and worst > most:
        raise CostCapExceeded(
            f"The worst case costs {as_wire(worst)} USD, max_cost_usd is {as_wire(most)}.", param="max_cost_usd"
        )


async def _require_distinct(connection: SqlConnection, batch_id: UUID) -> None:
    params = {"id": batch_id, "limit": MAX_PROBLEMS}
    repeated = (await connection.execute(SELECT_REPEATED, params)).mappings().all()
    if repeated:
        problems = [repeated_id(row["custom_id"], row["lines"][0], row["lines"][1]) for row in repeated]
        raise ValidationFailed(problems[0].message, param="custom_id", problems=problems)


def repeated_id(custom_id: str, first: int, line: int) -> FieldProblem:
    """The problem that a row's custom id is another row's too."""
    shown = custom_id if len(custom_id) <= 64 else f"{custom_id[:61]}..."
    return FieldProblem("custom_id", f"The custom_id {shown!r} is also that of line {first}.", line)


async def _reserve(connection: SqlConnection, draft: BatchDraft, amount: Decimal) -> Sequence[int]:
    """Reserve in every budget that covers the batch; the ids of their periods."""
    payer = {"tenant_id": draft.tenant_id, "team": draft.team, "end_user": draft.end_user}
    params = {"rows": dump_json([{**payer, "api_key_id": draft.api_key_id}])}
    await connection.execute(OPEN_PERIODS, params)
    found = balances_by_payer((await connection.execute(LOCK_BALANCES, params)).mappings())
    balances: Iterable[Balance] = next(iter(found.values()), [])
    short = next((balance for balance in balances if balance.remaining_usd < amount), None)
    if short is not None:
        raise _Short(Refusal(short, short.remaining_usd, amount))
    periods = [balance.period_id for balance in balances]
    if amount and periods:
        rows = dump_json([{"period_id": period, "amount": amount} for period in periods])
        await connection.execute(ADD_RESERVED, {"rows": rows})
    return periods


def _columns(draft: BatchDraft, total: int, reserved: Decimal, periods: Sequence[int]) -> dict[str, Any]:
    plain = ("id", "tenant_id", "api_key_id", "endpoint", "name", "model", "dedupe", "priority", "max_parallel")
    keys = ("idempotency_key", "request_hash")
    more = ("completion_window", "callback_url", "end_user", "team", "input_file_id", "output_expires_s", "expires_in")
    return {
        **{name: getattr(draft, name) for name in plain + more + keys},
        "routes": dump_json(draft.routes),
        "request": dump_json(draft.request),
        "columns": None if draft.columns is None else list(draft.columns),
        "template": None if draft.template is None else dump_json(draft.template),
        "dialect": None if draft.dialect is None else dump_json(draft.dialect),
        "labels": dump_json(draft.labels),
        "total": total,
        "reserved_usd": reserved,
        "budget_periods": list(periods),
    }


def _escape_all(texts: Sequence[str]) -> Sequence[str]:
    joined = _CELL.join(texts)
    if joined.count(_CELL) + 1 > len(texts):
        return [_escape(text) for text in texts]
    return _escape(joined).split(_CELL)


def _escape(text: str) -> str:
    text = text.replace("\\", r"\\")
    return text.replace("\n", r"\n").replace("\r", r"\r").replace("\t", r"\t")


def _escape_cells(text: str) -> str:
    """Escape for an array, in which backslashes and quotes count, and then for COPY."""
    return _escape(text.replace("\\", r"\\").replace('"', r"\"") if "\\" in text or '"' in text else text)


def _quoted(cells: Iterable[str]) -> str:
    return "{" + ",".join(f'"{cell}"' for cell in cells) + "}"
