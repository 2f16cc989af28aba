"""Files, as OpenAI's Files API has them: the input of batches, and what batches give back."""

from collections.abc import AsyncIterator
from math import inf
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from sqlalchemy import RowMapping
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api.auth import Caller
from api.batches.results import openai_lines
from api.bodies import shorten
from api.deps import CallerDep, FileId, Services, ServicesDep, services_of
from api.fields.others import FILE_TABLE
from api.fields.table import Does
from api.filestore import Upload, file_resource, stored_chunks
from api.multipart import FileBegins, FormField, documented_form, form_pieces
from api.openapi import answer, refusals
from api.responses import attachment, json_response, listed
from api.schemas.openai import MAX_FILE_EXPIRY_S, MIN_FILE_EXPIRY_S, FileDeleted, FileList, FileResource
from models.database import fetch_one, read_all, read_one
from models.errors import FieldProblem, NotFound, RateLimited, ValidationFailed
from models.file import DELETE_FILE, LIST_FILES, SELECT_FILE, SELECT_STORED
from models.ids import FILE, from_wire, to_wire
from models.plans import Plan

_FORM = documented_form(
    ["file", "purpose"],
    {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"const": "batch"},
        "expires_after[anchor]": {"const": "created_at"},
        "expires_after[seconds]": {"type": "integer", "minimum": MIN_FILE_EXPIRY_S, "maximum": MAX_FILE_EXPIRY_S},
    },
)

router = APIRouter(prefix="/v1/files", tags=["Files"])


@router.post(
    "",
    responses={200: answer("The file.", FileResource, "RateLimit", "RateLimit-Policy"), **refusals(413, 415, 422, 429)},
    openapi_extra=_FORM,
)
async def upload_file(request: Request) -> Response:
    """Upload a file for a batch: JSONL of OpenAI's form. An upload that is broken off leaves nothing."""
    services = services_of(request)
    caller = await services.authenticator.authenticate(request)
    limits = await services.limiter.admit_one(caller)
    plan = services.limiter.plan(caller.plan) or Plan()
    limited = plan.files is not None or plan.file_bytes is not None
    upload = Upload(services.pools.files)

    def check(stored: RowMapping) -> None:
        if upload.bytes > _room(plan, stored):
            raise _no_room(plan)

    try:
        room = inf
        if limited:
            (stored,) = await read_all(services.pools.light, SELECT_STORED, {"tenant_id": caller.tenant_id})
            room = _room(plan, stored)
        fields = await _receive(request, services, caller, upload, room)
        row = await upload.finish(_expiry(fields) or plan.files_expire_after_s, check if limited else None)
    except BaseException:
        await upload.drop()
        raise
    return json_response(file_resource(row), headers=limits)


def _room(plan: Plan, stored: RowMapping) -> float:
    """The bytes that a plan leaves for one more file; raises RateLimited where it has room for none."""
    if plan.files is not None and stored["files"] >= plan.files:
        raise _no_room(plan)
    return inf if plan.file_bytes is None else plan.file_bytes - int(stored["bytes"])


def _no_room(plan: Plan) -> RateLimited:
    limits = [(plan.files, "files"), (plan.file_bytes, "bytes")]
    allowed = " and ".join(f"{most:,} {what}" for most, what in limits if most is not None)
    detail = f"The plan of this API key allows {allowed} to be stored at a time: delete files first."
    return RateLimited(detail, retry_after_s=60, headers={"x-should-retry": "false"})


async def _receive(request: Request, services: Services, caller: Caller, upload: Upload, room: float) -> dict[str, str]:
    """Store the form's file, of at most ``room`` bytes; its fields."""
    fields: dict[str, str] = {}
    begun = False
    async for piece in form_pieces(request, services.settings.max_upload_mb << 20):
        match piece:
            case bytes():
                if upload.bytes + len(piece) > room:
                    raise _no_room(services.limiter.plan(caller.plan) or Plan())
                await upload.write(piece)
            case FormField(name, value):
                _require(name != "file" and _path(name) in FILE_TABLE, name, "There is no such field.")
                fields[name] = value
                _check_purpose(fields)
            case FileBegins(name, filename):
                begun = True
                _require(name == "file", name, "There is no such field.")
                await upload.begin(caller.tenant_id, shorten(filename, 255) or "upload.jsonl", "batch")
    _require(begun, "file", "This field is required, with a filename.")
    _require("purpose" in fields, "purpose", "This field is required.")
    return fields


@router.get("", responses={200: answer("A page of files.", FileList), **refusals(422)})
async def list_files(
    services: ServicesDep,
    caller: CallerDep,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> Response:
    """List files, newest first unless ``order`` is ``asc``."""
    cursor = None if after is None else from_wire(FILE, after)
    _require(after is None or cursor is not None, "after", "This is not the id of a file.")
    params = {"tenant_id": caller.tenant_id, "purpose": purpose, "after": cursor, "limit": limit + 1}
    rows = await services.reads.read_all(caller.tenant_id, LIST_FILES[order], params)
    return json_response(listed([file_resource(row) for row in rows], limit))


@router.get("/{file_id}", responses={200: answer("The file.", FileResource), **refusals(404)})
async def get_file(services: ServicesDep, caller: CallerDep, file_id: FileId) -> Response:
    """Read what is known of a file."""
    row = await read_one(services.pools.light, SELECT_FILE, {"id": file_id, "tenant_id": caller.tenant_id})
    if row is None:
        raise NotFound("There is no such file.")
    return json_response(file_resource(row))


@router.delete("/{file_id}", responses={200: answer("It is deleted.", FileDeleted), **refusals(404)})
async def delete_file(services: ServicesDep, caller: CallerDep, file_id: FileId) -> Response:
    """Delete a file. A batch that was made from it keeps its rows."""
    async with services.control.one_of(caller.tenant_id):
        params = {"id": file_id, "tenant_id": caller.tenant_id}
        deleted = await fetch_one(services.pools.control, DELETE_FILE, params)
    if deleted is None:
        raise NotFound("There is no such file.")
    return json_response({"id": to_wire(FILE, file_id), "object": "file", "deleted": True})


@router.get("/{file_id}/content", responses={200: {"description": "The content."}, **refusals(404)})
async def get_content(services: ServicesDep, caller: CallerDep, file_id: FileId) -> Response:
    """Read a file's content, streamed. That of a batch's output is made from the batch's rows as they are now."""
    row = await read_one(services.pools.light, SELECT_FILE, {"id": file_id, "tenant_id": caller.tenant_id})
    if row is None:
        raise NotFound("There is no such file.")
    content: AsyncIterator[bytes]
    headers = attachment(row["filename"])
    if row["content"] == "chunks":
        content = stored_chunks(services.reads.of(caller.tenant_id), file_id, row["bytes"])
        headers["content-length"] = str(row["bytes"])
    else:
        content = openai_lines(
            services.reads.of(caller.tenant_id), row["batch_id"], failed=row["content"] == "batch_errors"
        )
    return StreamingResponse(content, headers=headers, media_type="application/octet-stream")


def _check_purpose(fields: dict[str, str]) -> None:
    purpose = fields.get("purpose", "batch")
    row = FILE_TABLE.get(f"purpose={purpose}")
    said = f"{shorten(purpose)!r} is not supported; files are for purpose `batch`." if row is None else row.note
    _require(row is not None and row.does is Does.USED, "purpose", said)


def _path(name: str) -> str:
    """The path of a form's field in the table: ``expires_after.anchor`` for ``expires_after[anchor]``."""
    return name.replace("[", ".").removesuffix("]")


def _expiry(fields: dict[str, str]) -> int | None:
    """Seconds until the file expires, or None: it does not."""
    anchor, seconds = (fields.get(f"expires_after[{part}]") for part in ("anchor", "seconds"))
    if anchor is None and seconds is None:
        return None
    _require(anchor == "created_at", "expires_after[anchor]", "The anchor must be `created_at`.")
    valid = seconds is not None and seconds.isdecimal() and MIN_FILE_EXPIRY_S <= int(seconds[:9]) <= MAX_FILE_EXPIRY_S
    _require(valid, "expires_after[seconds]", f"Send {MIN_FILE_EXPIRY_S} to {MAX_FILE_EXPIRY_S} seconds.")
    return int(seconds or 0)


def _require(condition: bool, field: str, message: str) -> None:
    if not condition:
        field = shorten(field)
        raise ValidationFailed(f"{field}: {message}", param=field, problems=[FieldProblem(field, message)])
