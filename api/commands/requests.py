"""Files of requests in the form of OpenAI's Batch API, which are sent the way of that API."""

from collections.abc import Mapping
from pathlib import Path

import orjson
from rich.console import Console

from api.commands.client import Api
from api.commands.errors import CommandError
from api.commands.transfer import announce, upload
from api.commands.wording import Json, plain
from models.textfiles import marks_of

_KEYS = frozenset({"custom_id", "method", "url", "body"})
_MAX_LINE_BYTES = 8 << 20
_FLAGS = frozenset({"completion_window", "metadata", "name", "priority", "max_parallel", "dedupe", "user", "team"})
"""What may be said of such a batch as a whole."""


def endpoint_of(path: Path) -> str | None:
    """The endpoint that the first request of a file names, after blank lines; None when the file is of another kind."""
    with path.open("rb") as file:
        first = file.readline(_MAX_LINE_BYTES)
        first = first[marks_of(first) :]
        while first.isspace():
            first = file.readline(_MAX_LINE_BYTES)
    try:
        request = orjson.loads(first)
    except orjson.JSONDecodeError:
        return None
    is_request = isinstance(request, dict) and request.keys() == _KEYS
    return str(request["url"]) if is_request else None


def submit_requests(api: Api, path: Path, endpoint: str, values: Mapping[str, object], console: Console) -> Json:
    """Upload the file and make a batch of it; the batch, which is ``validating``. Raises Refused and NoAnswer.

    Raises CommandError for a flag that each line of the file decides on.
    """
    given = {name: value for name, value in values.items() if value not in (None, [], {})}
    if wrong := sorted(given.keys() - _FLAGS):
        raise CommandError(f"the lines of {plain(path)} are whole requests; leave out --{wrong[0].replace('_', '-')}")
    announce(path, console)
    file = upload(api, path, {"purpose": "batch"}, console, to="/v1/files")
    window = {"completion_window": "24h"}
    return api.post("/v1/batches", {**window, **given, "input_file_id": file["id"], "endpoint": endpoint})
