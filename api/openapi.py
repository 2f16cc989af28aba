"""The OpenAPI document: FastAPI's, with the shapes that handlers read and write by themselves."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.schemas.batches import BatchEstimate, BatchList, BatchResource
from api.schemas.budgets import BudgetList, BudgetRequest, BudgetResource, UsageReport
from api.schemas.health import HealthReport
from api.schemas.jobs import JobList, JobResource
from api.schemas.models import ModelList, ModelResource
from api.schemas.openai import (
    BatchRequest,
    ChatCompletion,
    ChatRequest,
    EmbeddingList,
    EmbeddingRequest,
    FileDeleted,
    FileList,
    FileResource,
)
from api.schemas.problems import Problem
from api.schemas.requests import JobRequest

Document = dict[str, Any]  # Any: JSON

_REF = "#/components/schemas/{model}"
_READ: tuple[type[BaseModel], ...] = (JobRequest, BudgetRequest, BatchRequest, ChatRequest, EmbeddingRequest)
_WRITTEN: tuple[type[BaseModel], ...] = (
    BatchResource,
    BatchList,
    BatchEstimate,
    JobResource,
    JobList,
    Problem,
    HealthReport,
    BudgetResource,
    BudgetList,
    UsageReport,
    ModelResource,
    ModelList,
    FileResource,
    FileList,
    FileDeleted,
    ChatCompletion,
    EmbeddingList,
)
_PUBLIC = ("/livez", "/readyz")
_PUBLIC_IN_PART = ("/health", "/metrics")

SUMMARIES = {
    "POST /v1/jobs": "Submit a job",
    "GET /v1/jobs": "List jobs",
    "GET /v1/jobs/{job_id}": "Read a job",
    "GET /status/{job_id}": "Read a job at the address that its submission gave",
    "POST /v1/jobs/{job_id}/cancel": "Cancel a job",
    "POST /v1/chat/completions": "Answer a chat, whole or as a stream",
    "POST /v1/embeddings": "Turn texts into vectors",
    "GET /v1/models": "List what a job's `model` may name",
    "GET /v1/models/{model}": "Read a model",
    "POST /v1/files": "Upload a file for a batch",
    "GET /v1/files": "List files",
    "GET /v1/files/{file_id}": "Read what is known of a file",
    "DELETE /v1/files/{file_id}": "Delete a file",
    "GET /v1/files/{file_id}/content": "Download a file",
    "POST /v1/batches": "Make a batch of an uploaded file",
    "POST /v1/batches/upload": "Make a batch of a table and a prompt",
    "GET /v1/batches": "List batches",
    "GET /v1/batches/{batch_id}": "Read a batch",
    "GET /v1/batches/{batch_id}/results": "Download the results of a batch so far",
    "POST /v1/batches/{batch_id}/pause": "Pause a batch",
    "POST /v1/batches/{batch_id}/resume": "Resume a paused batch",
    "POST /v1/batches/{batch_id}/cancel": "Cancel a batch",
    "POST /v1/batches/{batch_id}/retry": "Run the rows of a batch again that have no answer",
    "PUT /v1/budgets": "Create or change a budget",
    "GET /v1/budgets": "List budgets",
    "GET /v1/budgets/{budget_id}": "Read a budget",
    "DELETE /v1/budgets/{budget_id}": "Delete a budget",
    "GET /v1/usage": "Read what was used and what it cost",
    "GET /livez": "Tell whether this process answers",
    "GET /readyz": "Tell whether this process can serve",
    "GET /health": "Tell the state of every part",
    "GET /metrics": "Read metrics for Prometheus",
}
"""What each operation does, in a few words; each is another."""

_REFUSALS = {
    400: "The LLM's provider refuses the request: `provider_rejected`, `context_length_exceeded`, `content_filtered`.",
    401: "The API key is missing, unknown or revoked: `invalid_api_key`.",
    402: "The job does not fit a budget that covers it: `budget_exceeded`.",
    404: "There is no such resource, or it is another tenant's: `not_found`, `model_not_found`.",
    409: "The state does not allow it: `job_finished`, `batch_finished`, `batch_busy`, `batch_nothing_to_retry`.",
    413: "The body is too large: `payload_too_large`.",
    415: "The body is not JSON: `unsupported_media_type`.",
    422: "The request cannot be accepted: `validation_failed`, `idempotency_mismatch`,"
    " `context_length_exceeded`, `cost_cap_exceeded`, `callback_url_refused`.",
    429: "The API key has used up what its plan allows for now: `rate_limited`.",
    502: "The LLM's provider cannot be used: `connection`, `provider_auth`.",
    504: "The job goes on, the wait is over: `wait_timeout`; or it ran out of time: `timeout`, `expired`.",
    503: "Postgres is away; nothing was recorded unless `detail` says otherwise: `unavailable`.",
}

_REFUSAL_HEADERS = {429: ("Retry-After", "RateLimit", "RateLimit-Policy"), 503: ("Retry-After",)}


class DocumentedApp(FastAPI):
    """A FastAPI whose document has the API's security scheme and every shape that is referred to."""

    def openapi(self) -> Document:
        """The OpenAPI document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            _drop_foreign_refusals(document)
            _summarize(document)
            components = document.setdefault("components", {})
            components["schemas"] = {**components.get("schemas", {}), **_schemas()}
            components["securitySchemes"] = {
                "api_key": {"type": "http", "scheme": "bearer", "description": "Your API key, `hr_...`."}
            }
            document["security"] = [{"api_key": []}]
            for path in _PUBLIC:
                document["paths"][path]["get"]["security"] = []
            for path in _PUBLIC_IN_PART:
                document["paths"][path]["get"]["security"] = [{"api_key": []}, {}]
        assert self.openapi_schema is not None  # set by FastAPI
        return self.openapi_schema


def answer(description: str, model: type[BaseModel], *headers: str) -> Document:
    """A response that carries a shape."""
    content = {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}
    return {"description": description, "content": content, "headers": _strings(*headers)}


def refusals(*statuses: int) -> dict[int | str, Document]:
    """The problem documents that an operation may answer with, besides those of any operation."""
    schema = {"$ref": _REF.format(model=Problem.__name__)}
    return {
        status: {
            "description": _REFUSALS[status],
            "content": {"application/problem+json": {"schema": schema}},
            "headers": _strings(*_REFUSAL_HEADERS.get(status, ())),
        }
        for status in sorted({401, 503, *statuses})
    }


def body_of(model: type[BaseModel], example: Document) -> Document:
    """The request body of an operation that reads it by itself."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}


def header(name: str, description: str, **schema: object) -> Document:
    """A request header of an operation that reads it by itself."""
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string", **schema},
    }


def _strings(*headers: str) -> Document:
    return {name: {"schema": {"type": "string"}} for name in headers}


def _drop_foreign_refusals(document: Document) -> None:
    """FastAPI documents an answer of its own to wrong parameters, which this app never gives."""
    for methods in document["paths"].values():
        for operation in methods.values():
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document.get("components", {}).get("schemas", {}).pop(name, None)


def _summarize(document: Document) -> None:
    """Replace the summaries that FastAPI makes of functions' names."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            operation["summary"] = SUMMARIES.get(f"{method.upper()} {path}", operation["summary"])


def _schemas() -> Document:
    models = [(model, "validation") for model in _READ] + [(model, "serialization") for model in _WRITTEN]
    _, definitions = models_json_schema(models, ref_template=_REF)  # type: ignore[arg-type]  # literal modes
    schemas: Document = definitions["$defs"]
    return schemas
