"""Responses in JSON, serialised by orjson."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import orjson
from starlette.responses import Response

from models.results import LINE_SEPARATORS

_ESCAPES = [(separator.encode(), escape.encode()) for separator, escape in LINE_SEPARATORS.items()]


def json_response(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A document as a JSON response."""
    return Response(orjson.dumps(document), status, headers, "application/json")


def one_line(document: object) -> bytes:
    """A document as JSON that no client splits into lines."""
    line = orjson.dumps(document)
    for separator, escape in _ESCAPES:
        line = line.replace(separator, escape)
    return line


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
