"""Responses in JSON, serialised by orjson."""

from collections.abc import Mapping

import orjson
from starlette.responses import Response


def json_response(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A document as a JSON response."""
    return Response(orjson.dumps(document), status, headers, "application/json")
