"""The outermost layer of the app: names every request, counts it, and answers what nobody caught."""

import secrets
from collections import defaultdict
from itertools import count
from time import perf_counter

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import unexpected_response

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

log = structlog.get_logger()


class Traffic:
    """Counts and seconds of answered requests by (method, route, status); routes are templates, so they are
    few."""

    def __init__(self) -> None:
        self.requests: defaultdict[tuple[str, str, int], int] = defaultdict(int)
        self.seconds: defaultdict[tuple[str, str, int], float] = defaultdict(float)

    def add(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one answered request."""
        route = scope.get("route")
        method = scope["method"] if scope["method"] in METHODS else "OTHER"
        key = (method, getattr(route, "path", "unmatched"), status)
        self.requests[key] += 1
        self.seconds[key] += seconds


class Edge:
    """Pure ASGI: adds ``X-Request-Id``, counts the traffic, answers HEAD, and turns an unforeseen exception into a
    500."""

    def __init__(self, app: ASGIApp, traffic: Traffic) -> None:
        self._app = app
        self._traffic = traffic
        self._prefix = f"req_{secrets.token_hex(8)}"
        self._numbers = count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_head = scope["method"] == "HEAD"
        if is_head:  # answered as GET is, without the body
            scope = {**scope, "method": "GET"}
        request_id = f"{self._prefix}{next(self._numbers):08x}".encode()
        started = perf_counter()
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception as error:
            log.error(
                "api.failed",
                request_id=request_id.decode(),
                method=scope["method"],
                path=scope["path"],
                exc_info=error,
            )
            if status:
                raise  # the server cuts the connection, so that a half answer is not taken for a whole one
            await unexpected_response()(scope, receive, send_named)
        finally:
            self._traffic.add(scope, status, perf_counter() - started)
