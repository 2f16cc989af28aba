"""Responses in JSON, serialised by orjson."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import orjson
from starlette.responses import Response


def json_response(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A document as a JSON response."""
    return Response(orjson.dumps(document), status, headers, "application/json")


def listed(data: list[dict[str, Any]], limit: int) -> dict[str, Any]:  # Any: JSON
    """A list object of at most ``limit`` resources; one more than that says that there is another page."""
    shown = data[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(data) > limit,
    }


def attachment(filename: str) -> dict[str, str]:
    """The header that names a download (RFC 6266)."""
    return {"content-disposition": f"attachment; filename*=UTF-8''{quote(filename, safe='')}"}
