"""A spreadsheet in, a batch out: ``POST /v1/batches/upload``."""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Mapping
from typing import BinaryIO
from uuid import UUID

import structlog
from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from api.auth import Caller
from api.batches.estimates import estimate
from api.batches.forms import ENCODINGS, Form, read_form
from api.batches.orders import Order, Taken
from api.bodies import shorten
from api.deps import Services, services_of
from api.idempotency import KEY_HEADER, batch_of_key, check_key, digest_of
from api.multipart import FileBegins, FormField, FormPiece, documented_form, form_pieces
from api.openapi import answer, refusals
from api.responses import json_response
from api.routes.batches import batch_response
from api.schemas.batches import BatchEstimate, BatchResource
from api.waiting import disconnected
from models.database import read_all
from models.errors import FieldProblem, Unavailable, ValidationFailed
from models.feeding import SELECT_CAPACITY
from models.ids import BATCH, to_wire
from models.validation import SELECT_LIVE_ROWS
from models.wakeups import DUE

STALL_S = 60.0
_WRITE_BYTES = 1 << 20

_TEXT = {"type": "string"}
_AS_JSON = {**_TEXT, "description": "As a job's, in JSON."}
_FORM = documented_form(
    ["file"],
    {
        "file": {"type": "string", "format": "binary", "description": "CSV, JSONL or .xlsx."},
        "prompt": {**_TEXT, "description": "A template, such as `Classify: {{text}}`."},
        "system": {**_TEXT, "description": "The system's message; a template too."},
        "id_column": {**_TEXT, "description": "The column with each row's `custom_id`, if there is one."},
        "completion_window": {**_TEXT, "default": "24h", "examples": ["1h", "24h", "7d"]},
        "max_parallel": {"type": "integer", "minimum": 1},
        "dedupe": {"type": "boolean", "description": "Compute rows with equal prompts once."},
        "dry_run": {"type": "boolean", "description": "Check and estimate; store nothing."},
        "name": {**_TEXT, "maxLength": 256},
        "delimiter": {
            **_TEXT,
            "description": "Of a CSV; sniffed among comma, semicolon, tab and pipe if absent.",
        },
        "encoding": {"enum": list(ENCODINGS), "description": "Of a CSV without a byte-order mark; UTF-8 if absent."},
        "format": {"enum": ["csv", "jsonl", "xlsx"]},
        **dict.fromkeys(("model", "priority", "user", "team", "fallbacks", "max_cost_usd"), _TEXT),
        **{name: {"type": "integer"} for name in ("max_tokens", "seed", "top_k")},
        **{
            name: {"type": "number"}
            for name in ("temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty")
        },
        **dict.fromkeys(("stop", "response_format", "metadata"), _AS_JSON),
    },
)

log = structlog.get_logger()
router = APIRouter(prefix="/v1/batches", tags=["Batches"])


@router.post(
    "/upload",
    status_code=202,
    responses={
        200: answer(
            "What the batch would come to (`dry_run`); or the batch that the Idempotency-Key has made before.",
            BatchEstimate,
            "Idempotent-Replayed",
        ),
        202: answer("The batch is recorded.", BatchResource, "Location", "RateLimit", "RateLimit-Policy"),
        **refusals(402, 404, 413, 415, 422, 429),
    },
    openapi_extra=_FORM | {"parameters": [KEY_HEADER]},
)
async def upload_batch(request: Request) -> Response:
    """Make a batch of a file: a job for each row. It is taken whole or refused whole, with every problem named."""
    services = services_of(request)
    caller = await services.authenticator.authenticate(request)
    key = check_key(request.headers.get("idempotency-key"))
    with services.uploads.one_of(caller.tenant_id):
        headers = await services.limiter.admit_one(caller)
        services.clerks.prepare()
        with await asyncio.to_thread(tempfile.TemporaryFile) as file:
            pieces = form_pieces(request, services.settings.max_upload_mb << 20)
            try:
                filename, fields = await _receive(pieces, file)
            except OSError as error:
                log.error("uploads.not_kept", error=str(error))
                raise Unavailable("There is no room to keep the file in now.", retry_after_s=60) from None
            form = read_form(fields)
            if form.dry_run:
                key = None  # it makes nothing
            request_hash = None if key is None else await asyncio.to_thread(_digest, filename, fields, file)
            made = await batch_of_key(services.pools.submit, caller.tenant_id, key, request_hash)
            if made is not None:
                return await _recorded(services, caller, made, headers, replayed=True)
            live_rows = await _live_rows(services, caller)
            order = _order(services, caller, filename, fields, key, request_hash, live_rows)
            taken = await _unless_gone(request, services, order, file)
    if form.dry_run:
        return json_response(await _estimated(services, form, taken), headers=headers)
    if taken.batch_id is not None:
        services.wakeups.announce(DUE)
        return await _recorded(services, caller, taken.batch_id, headers, replayed=False)
    made = await batch_of_key(services.pools.submit, caller.tenant_id, key, request_hash)
    assert made is not None  # by the same request, which was sent twice at once
    return await _recorded(services, caller, made, headers, replayed=True)


async def _recorded(
    services: Services, caller: Caller, batch_id: UUID, limits: Mapping[str, str], *, replayed: bool
) -> Response:
    headers = {**limits, "location": f"/v1/batches/{to_wire(BATCH, batch_id)}"}
    if replayed:
        headers["idempotent-replayed"] = "true"
    return await batch_response(services, caller, batch_id, 200 if replayed else 202, headers)


async def _receive(pieces: AsyncIterator[FormPiece], file: BinaryIO) -> tuple[str, dict[str, str]]:
    """Keep the form's file; its name and the fields. Raises ClientDisconnect for one that stalls."""
    fields: dict[str, str] = {}
    filename: str | None = None
    held = bytearray()
    while (piece := await _next(pieces)) is not None:
        match piece:
            case bytes():
                held += piece
                if len(held) >= _WRITE_BYTES:
                    await asyncio.to_thread(file.write, bytes(held))
                    held.clear()
            case FormField(name, value):
                if name == "file":
                    _refuse("Send the file with a filename.")
                fields[name] = value
            case FileBegins(name, filename):
                if name != "file":
                    _refuse(f"There is no such field: {shorten(name)}.")
    if filename is None:
        _refuse("This field is required, with a filename.")
    await asyncio.to_thread(file.write, bytes(held))
    await asyncio.to_thread(file.seek, 0)
    return filename or "", fields


def _digest(filename: str, fields: dict[str, str], file: BinaryIO) -> str:
    content = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # its types miss BinaryIO
    file.seek(0)
    return digest_of([filename, fields, content])


async def _next(pieces: AsyncIterator[FormPiece]) -> FormPiece | None:
    try:
        async with asyncio.timeout(STALL_S):
            return await anext(pieces, None)
    except TimeoutError:
        raise ClientDisconnect from None


async def _unless_gone(request: Request, services: Services, order: Order, file: BinaryIO) -> Taken:
    """Have the file taken in; when the caller hangs up meanwhile, nothing of it is stored."""
    work = asyncio.create_task(services.clerks.take_in(order, file))
    gone = asyncio.create_task(disconnected(request.receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        gone.cancel()
        work.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _live_rows(services: Services, caller: Caller) -> int:
    """The rows of the tenant's unfinished batches, where the caller's plan limits them."""
    plan = services.limiter.plan(caller.plan)
    if plan is None or plan.batch_rows is None:
        return 0
    (live,) = await read_all(services.pools.light, SELECT_LIVE_ROWS, {"tenant_id": caller.tenant_id})
    return int(live["rows"])


def _order(
    services: Services,
    caller: Caller,
    filename: str,
    fields: dict[str, str],
    key: str | None,
    request_hash: str | None,
    live_rows: int,
) -> Order:
    settings = services.settings
    return Order(
        tenant_id=caller.tenant_id,
        api_key_id=caller.api_key_id,
        filename=filename,
        fields=fields,
        vitals=dict(services.vitals.llms),
        database_url=settings.database_url,
        catalog=settings.catalog,
        optional_llms=settings.optional_llms,
        max_rows=settings.max_batch_rows,
        idempotency_key=key,
        request_hash=request_hash,
        plan=caller.plan,
        live_rows=live_rows,
        redis_url=settings.redis_url,
        rate_limit_timeout_s=settings.rate_limit_timeout_s,
    )


async def _estimated(services: Services, form: Form, taken: Taken) -> object:
    queue = services.catalog.queue_of(taken.route[0])
    rows = await read_all(services.pools.light, SELECT_CAPACITY, {"queues": [queue]})
    return estimate(form, taken, services.catalog, services.vitals.llms, int(rows[0]["capacity"]))


def _refuse(message: str) -> None:
    raise ValidationFailed(f"file: {message}", param="file", problems=[FieldProblem("file", message)])
