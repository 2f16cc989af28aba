"""Chat completions and embeddings, answered while the caller waits: jobs like any other, so that one row of a batch can
be tried first with the same client."""

import hashlib

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.auth import Caller
from api.bodies import JsonObject, read_json_object
from api.chat import ChatStream, Waiting
from api.deps import Services, services_of
from api.idempotency import KEY_HEADER, check_key
from api.openai_requests import embedding_request, parse_chat, plan_embedding
from api.openapi import answer, body_of, header, refusals
from api.ratelimits import submit_within_limits
from api.routes.jobs import DirectRoute, preferred_wait_s
from api.schemas.openai import ChatCompletion, ChatRequest, EmbeddingList, EmbeddingRequest
from api.submission import plan_job
from models.ids import JOB, to_wire

router = APIRouter(tags=["OpenAI"], route_class=DirectRoute)

_HEADERS = [
    KEY_HEADER,
    header("Prefer", "`wait=N`: wait up to N seconds for the answer; after that, 504 `wait_timeout`."),
]

_REFUSED = refusals(400, 402, 404, 413, 415, 422, 429, 502, 504)


@router.post(
    "/v1/chat/completions",
    responses={200: answer("The chat completion.", ChatCompletion, "X-Headrace-Job-Id"), **_REFUSED},
    openapi_extra={
        "requestBody": body_of(
            ChatRequest, {"model": "auto", "messages": [{"role": "user", "content": "What is a headrace?"}]}
        ),
        "parameters": _HEADERS,
    },
)
async def create_chat_completion(request: Request) -> Response:
    """Submit a job and wait for it; with `stream`, the answer comes as it is made. Hanging up cancels the job,
    unless the request has an Idempotency-Key."""
    services = services_of(request)
    caller = await services.authenticator.authenticate(request)
    key = check_key(request.headers.get("idempotency-key"))
    chat = parse_chat(await read_json_object(request, services.settings.max_body_bytes))
    job = plan_job(chat.request, caller, services.catalog, key, services.vitals.router)
    if not chat.stream:
        return await (await _submit(request, services, caller, job)).answer(request)
    job["request"]["stream"] = services.feeds.channel
    feed = services.feeds.open(job["id"])
    try:
        waiting = await _submit(request, services, caller, job)
    except BaseException:
        services.feeds.close(feed)
        raise
    return ChatStream(waiting, feed, include_usage=chat.include_usage)


@router.post(
    "/v1/embeddings",
    responses={200: answer("The embeddings, in the order of the texts.", EmbeddingList), **_REFUSED},
    openapi_extra={
        "requestBody": body_of(EmbeddingRequest, {"model": "my-embedder", "input": "A headrace leads water."}),
        "parameters": _HEADERS,
    },
)
async def create_embeddings(request: Request) -> Response:
    """Turn texts into vectors, by an LLM whose entry in the catalogue says `embeddings = true`."""
    services = services_of(request)
    caller = await services.authenticator.authenticate(request)
    key = check_key(request.headers.get("idempotency-key"))
    body = await read_json_object(request, services.settings.max_body_bytes)
    job = plan_embedding(
        embedding_request(body), caller, services.catalog, key, services.vitals.router, request_hash=_hash(body)
    )
    return await (await _submit(request, services, caller, job)).answer(request)


async def _submit(request: Request, services: Services, caller: Caller, job: JsonObject) -> Waiting:
    most_s = services.settings.sync_wait_s
    wait_s = preferred_wait_s(request, most_s)
    again = job["idempotency_key"] is not None
    submitted, limits = await submit_within_limits(services.limiter, services.submitter, caller, job)
    job_id = submitted.row["id"]
    headers = {"x-headrace-job-id": to_wire(JOB, job_id), **limits}
    if not submitted.created:
        headers["idempotent-replayed"] = "true"
    if wait_s:
        headers["preference-applied"] = f"wait={wait_s}"
    own = submitted.created and not again
    return Waiting(services, caller, job_id, own, headers, wait_s or most_s, again)


def _hash(body: JsonObject) -> str:
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()
