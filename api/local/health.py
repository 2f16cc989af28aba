"""``headrace health``: the parts of a running Headrace, as a table."""

from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from api.local.by_hand import program, without_number
from api.local.errors import LocalError, Unanswered
from api.local.settings import api_address

TIMEOUT_S = 10.0


def show_health(url: str, console: Console) -> bool:
    """Print what ``GET /health`` says, and return whether all is well.

    Raises LocalError when nothing answers, or something that is not Headrace.
    """
    address = api_address(url)
    try:
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client:
            response = client.get(f"{address}/health")
        body = response.json()
    except httpx.TransportError as error:
        raise Unanswered(
            f"nothing answers at {url}: {without_number(error)}; `{program()} up` starts Headrace here"
        ) from error
    except httpx.HTTPError as error:
        raise LocalError(f"{url} cannot be asked: {error}") from error
    except ValueError as error:
        raise LocalError(f"what answers at {url} is not Headrace") from error
    console.print(_table(body if isinstance(body, dict) else {}))
    return response.is_success


def _table(body: dict[str, Any]) -> Table:  # Any: JSON
    table = Table("part", "status", "detail", title=f"health: {body.get('status', 'unknown')}", title_justify="left")
    parts = body.get("parts")
    for name, part in parts.items() if isinstance(parts, dict) else ():
        details = {key: value for key, value in part.items() if key != "status"}
        status = part.get("status", "unknown")
        colour = "green" if status == "ok" else "red"
        table.add_row(name, f"[{colour}]{status}[/]", ", ".join(f"{key} {value}" for key, value in details.items()))
    return table
