"""Making a batch of an uploaded file, as OpenAI's Batch API does."""

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from api.auth import Caller
from api.batches.windows import window_seconds
from api.bodies import JsonObject, read_json_object
from api.deps import services_of
from api.errors import validation_failed
from api.fields.others import BATCH_TABLE
from api.fields.reading import refused, settle
from api.idempotency import KEY_HEADER, batch_of_key, check_key, digest_of
from api.openapi import answer, body_of, refusals
from api.routes.batches import batch_response
from api.routes.jobs import DirectRoute
from api.schemas.batches import BatchResource
from api.schemas.openai import BatchRequest
from models.database import dump_json, fetch_all, read_one
from models.errors import FieldProblem, NotFound
from models.file import SELECT_FILE
from models.ids import FILE, from_wire, new_id
from models.job import PRIORITIES
from models.validation import RECORD_BATCH

router = APIRouter(tags=["Batches"], route_class=DirectRoute)

_REPLAYED = {"idempotent-replayed": "true"}
_EXAMPLE = {"input_file_id": "file-...", "endpoint": "/v1/chat/completions", "completion_window": "24h"}


@router.post(
    "/v1/batches",
    responses={
        200: answer("The batch.", BatchResource, "Idempotent-Replayed", "RateLimit", "RateLimit-Policy"),
        **refusals(404, 413, 415, 422, 429),
    },
    openapi_extra={"requestBody": body_of(BatchRequest, _EXAMPLE), "parameters": [KEY_HEADER]},
)
async def create_batch(request: Request) -> Response:
    """Make a batch of an uploaded file. It is `validating` until its file has been read: then it begins, or it is
    `failed` and `errors` has what is wrong with each line; nothing of it has cost anything."""
    services = services_of(request)
    caller = await services.authenticator.authenticate(request)
    key = check_key(request.headers.get("idempotency-key"))
    body = await read_json_object(request, services.settings.max_body_bytes)
    wanted = _parse(body)
    request_hash = None if key is None else digest_of(body)
    made = await batch_of_key(services.pools.submit, caller.tenant_id, key, request_hash)
    if made is not None:
        return await batch_response(services, caller, made, headers=_REPLAYED)
    limits = dict(await services.limiter.admit_one(caller))
    file_id = from_wire(FILE, wanted.input_file_id)
    params = {"id": file_id, "tenant_id": caller.tenant_id}
    file = None if file_id is None else await read_one(services.pools.submit, SELECT_FILE, params)
    if file is None or file["content"] != "chunks":
        raise NotFound("There is no such file for a batch.", param="input_file_id")
    columns = _columns(wanted, caller) | {
        "input_file_id": file_id,
        "idempotency_key": key,
        "request_hash": request_hash,
    }
    if await fetch_all(services.pools.submit, RECORD_BATCH, columns):
        await services.validators.take(columns["id"], file["bytes"])
        return await batch_response(services, caller, columns["id"], headers=limits)
    made = await batch_of_key(services.pools.submit, caller.tenant_id, key, request_hash)
    assert made is not None  # by the same request, which was sent twice at once
    return await batch_response(services, caller, made, headers=_REPLAYED)


def _parse(body: JsonObject) -> BatchRequest:
    given, problems = settle(body, BATCH_TABLE)
    if problems:
        raise refused(problems)
    try:
        wanted = BatchRequest.model_validate(given)
    except ValidationError as error:
        raise validation_failed(error.errors(include_url=False, include_input=False)) from None
    if window_seconds(wanted.completion_window) is None:
        raise refused([FieldProblem("completion_window", "Send a window such as 90m, 24h or 7d, of 30 days at most.")])
    return wanted


def _columns(wanted: BatchRequest, caller: Caller) -> JsonObject:
    expiry = wanted.output_expires_after
    return {
        "id": new_id(),
        "tenant_id": caller.tenant_id,
        "api_key_id": caller.api_key_id,
        "endpoint": wanted.endpoint,
        "name": wanted.name,
        "dedupe": wanted.dedupe,
        "priority": PRIORITIES[wanted.priority],
        "max_parallel": wanted.max_parallel,
        "completion_window": wanted.completion_window,
        "end_user": wanted.user,
        "team": wanted.team,
        "labels": dump_json(wanted.metadata or {}),
        "output_expires_s": None if expiry is None else expiry.seconds,
        "expires_in": window_seconds(wanted.completion_window),
    }
