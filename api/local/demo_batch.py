"""The demonstration's second part: a small spreadsheet through the same model, as a batch."""

import csv
import io
import time
from collections.abc import Callable
from typing import Any

import httpx
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from api.local.errors import LocalError

TEMPLATE = "What is the capital of {{country}}? Answer with the name of the city only."
COUNTRIES = ("France", "Japan", "Egypt", "Italy", "Peru", "Norway")
MAX_TOKENS = 12
TIMEOUT_S = 300.0
POLL_S = 0.25
_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_BAR_WIDTH = 24

Json = dict[str, Any]  # Any: JSON


def run_batch(client: httpx.Client, progress: Callable[[str], None]) -> tuple[Json, list[dict[str, str]]]:
    """Upload the spreadsheet, watch the batch to its end, fetch its results: the batch and the rows.

    Raises LocalError when the API refuses or not every row completes, and httpx.HTTPError when it does not answer.
    """
    sheet = "\r\n".join(["country", *COUNTRIES, ""]).encode()
    fields = {"prompt": TEMPLATE, "max_tokens": str(MAX_TOKENS), "temperature": "0", "name": "demo"}
    batch = _json(client.post("/v1/batches/upload", data=fields, files={"file": ("countries.csv", sheet, "text/csv")}))
    deadline = time.monotonic() + TIMEOUT_S
    shown = None
    while batch["status"] not in _ENDED and time.monotonic() < deadline:
        counts = batch["counts"]
        if counts["completed"] != shown:
            shown = counts["completed"]
            progress(f"batch {_bar(shown, counts['total'])} {shown}/{counts['total']} rows, {counts['failed']} failed")
        time.sleep(POLL_S)
        batch = _json(client.get(f"/v1/batches/{batch['id']}"))
    results = client.get(batch["results_url"], params={"format": "csv"}).text
    if batch["counts"]["completed"] != len(COUNTRIES):
        raise LocalError(f"{batch['id']} is {batch['status']}, with {batch['counts']}: {results[:500]}")
    return batch, list(csv.DictReader(io.StringIO(results.removeprefix("\ufeff"))))


def report_batch(batch: Json, rows: list[dict[str, str]]) -> Group:
    """The template, what came back row by row, and what it took."""
    table = Table("country", "output", "tokens", box=None, padding=(0, 2, 0, 2))
    for row in rows:
        tokens = f"{row['input_tokens']} in, {row['output_tokens']} out"
        table.add_row(Text(row["country"]), Text(" ".join(row["output"].split())), tokens)
    took_s = batch["completed_at"] - batch["created_at"]
    counts = batch["counts"]
    fact = f"{batch['id']}: {counts['completed']} of {counts['total']} rows completed in about {took_s} s"
    title = "a batch of rows, each with the prompt"
    return Group(
        Panel(Text(TEMPLATE), title=title, title_align="left", border_style="cyan"),
        table,
        Text(f"  {fact}, ${batch['cost_usd']}"),
    )


def _bar(done: int, total: int) -> str:
    filled = _BAR_WIDTH * done // max(1, total)
    return "━" * filled + "─" * (_BAR_WIDTH - filled)


def _json(response: httpx.Response) -> Json:
    if not response.is_success:
        raise LocalError(f"{response.request.url} answered {response.status_code}: {response.text[:500]}")
    body: Json = response.json()
    return body
