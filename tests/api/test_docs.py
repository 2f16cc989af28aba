"""The API's documentation: complete, valid, and served from here alone."""

import json
import re
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.openapi import SUMMARIES
from api.settings import ApiSettings

pytestmark = pytest.mark.anyio

Document = dict[str, Any]  # Any: JSON


@pytest.fixture
def document() -> Document:
    return create_app(ApiSettings(database_url="postgresql+psycopg://", redis_url="redis://")).openapi()


def operations(document: Document) -> dict[str, Document]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_every_operation_is_documented(document: Document) -> None:
    assert set(operations(document)) == {
        "POST /v1/jobs",
        "GET /v1/jobs",
        "GET /v1/jobs/{job_id}",
        "GET /status/{job_id}",
        "POST /v1/jobs/{job_id}/cancel",
        "PUT /v1/budgets",
        "GET /v1/budgets",
        "GET /v1/budgets/{budget_id}",
        "DELETE /v1/budgets/{budget_id}",
        "GET /v1/usage",
        "GET /v1/models",
        "GET /v1/models/{model}",
        "POST /v1/files",
        "GET /v1/files",
        "GET /v1/files/{file_id}",
        "DELETE /v1/files/{file_id}",
        "GET /v1/files/{file_id}/content",
        "POST /v1/chat/completions",
        "POST /v1/embeddings",
        "GET /v1/batches/{batch_id}/results",
        "POST /v1/batches",
        "GET /v1/batches",
        "GET /v1/batches/{batch_id}",
        "POST /v1/batches/{batch_id}/pause",
        "POST /v1/batches/{batch_id}/resume",
        "POST /v1/batches/{batch_id}/cancel",
        "POST /v1/batches/{batch_id}/retry",
        "POST /v1/batches/upload",
        "GET /livez",
        "GET /readyz",
        "GET /health",
        "GET /metrics",
    }
    assert document["openapi"].startswith("3.1")
    ids = [operation["operationId"] for operation in operations(document).values()]
    assert len(ids) == len(set(ids))


def test_every_operation_has_a_summary_of_its_own(document: Document) -> None:
    summaries = {name: operation["summary"] for name, operation in operations(document).items()}
    assert summaries == SUMMARIES
    assert len(set(summaries.values())) == len(summaries)


def test_every_reference_leads_somewhere(document: Document) -> None:
    references = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document)))
    assert references <= set(document["components"]["schemas"])
    assert {"JobRequest", "JobResource", "JobList", "Problem", "HealthReport"} <= references


def test_refusals_are_problem_documents_and_keys_are_asked_for(document: Document) -> None:
    for name, operation in operations(document).items():
        if "/v1" in name or "/status" in name:
            assert "application/problem+json" in operation["responses"]["401"]["content"], name
            assert "security" not in operation
        else:
            in_part: list[dict[str, list[str]]] = (
                [{"api_key": []}, {}] if name in ("GET /health", "GET /metrics") else []
            )
            assert operation["security"] == in_part
    assert document["security"] == [{"api_key": []}]


def test_a_submission_has_its_body_and_headers(document: Document) -> None:
    submit = operations(document)["POST /v1/jobs"]
    reference = submit["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    assert reference == "#/components/schemas/JobRequest"
    assert {parameter["name"] for parameter in submit["parameters"]} == {"Idempotency-Key", "Prefer"}
    request = document["components"]["schemas"]["JobRequest"]
    assert request["additionalProperties"] is False
    assert request["properties"]["messages"]["anyOf"][0]["items"]["$ref"] == "#/components/schemas/Message"


def test_the_document_knows_no_schema_that_the_app_does_not_use(document: Document) -> None:
    assert "HTTPValidationError" not in document["components"]["schemas"]


async def test_the_page_asks_no_other_host_for_anything(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.status_code == 200
    assert "//" not in page.text.replace("<!-- `SwaggerUIBundle` is now available on the page -->", "")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    paths = re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text)
    assert len(paths) == 3
    for path in [*paths, "/openapi.json"]:
        response = await client.get(path)
        assert (response.status_code, len(response.content) > 100) == (200, True)


async def test_the_root_leads_to_the_documentation(client: httpx.AsyncClient) -> None:
    response = await client.get("/")
    assert (response.status_code, response.headers["location"]) == (307, "/docs")
