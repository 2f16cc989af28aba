"""Usage: what was used and what it cost, from the ledger."""

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.responses import Response

from api.csvcells import harmless
from api.deps import CallerDep, ServicesDep
from api.openapi import answer, refusals
from api.responses import json_response
from api.schemas.budgets import UsageReport
from models.errors import FieldProblem, ValidationFailed
from models.ledger import USAGE_GROUPS, select_usage
from models.pricing import as_wire

DEFAULT_DAYS = 30
_FIRST_YEAR, _LAST_YEAR = 2000, 9000
_NUMBERS = ("jobs", "attempts", "input_tokens", "output_tokens", "cost_usd")

router = APIRouter(tags=["Usage"])


@router.get("/v1/usage", responses={200: answer("Usage by group.", UsageReport), **refusals(422)})
async def get_usage(
    services: ServicesDep,
    caller: CallerDep,
    group_by: Annotated[str, Query(description=f"Any of {', '.join(USAGE_GROUPS)}, separated by commas.")] = "",
    start: Annotated[
        str | None, Query(alias="from", description=f"A day or a time in ISO 8601; {DEFAULT_DAYS} days ago if absent.")
    ] = None,
    end: Annotated[str | None, Query(alias="to", description="Up to before this day or time; now if absent.")] = None,
    format: Annotated[Literal["json", "csv"], Query()] = "json",  # noqa: A002 - the wire's name
) -> Response:
    """Read what was used and what it cost. Days are UTC; an attempt counts when it was settled."""
    groups = _groups(group_by)
    now = datetime.now(UTC)
    until = now if end is None else _moment(end, "to")
    since = until - timedelta(days=DEFAULT_DAYS) if start is None else _moment(start, "from")
    params = {"tenant_id": caller.tenant_id, "start": since, "end": until}
    rows = await services.reads.read_all(caller.tenant_id, select_usage(groups), params)
    data = [{**row, "cost_usd": as_wire(row["cost_usd"])} for row in rows]
    if format == "csv":
        headers = {"content-disposition": 'attachment; filename="usage.csv"'}
        return Response(as_csv([*groups, *_NUMBERS], data), 200, headers, "text/csv; charset=utf-8")
    return json_response({"object": "list", "data": data})


def as_csv(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:  # Any: cells of several types
    """Rows as CSV; a text that a spreadsheet would execute is preceded by an apostrophe."""
    written = io.StringIO()
    writer = csv.writer(written)
    writer.writerow(columns)
    writer.writerows([_cell(row[column]) for column in columns] for row in rows)
    return written.getvalue()


def _cell(value: object) -> object:
    return harmless(value) if isinstance(value, str) else value


def _groups(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in USAGE_GROUPS]
    if unknown:
        raise _invalid("group_by", f"Usage cannot be grouped by {', '.join(unknown)}.")
    return list(dict.fromkeys(names))


def _moment(text: str, param: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _invalid(param, "Send a day or a time in ISO 8601, such as 2026-11-21.") from None
    if not _FIRST_YEAR <= moment.year < _LAST_YEAR:
        raise _invalid(param, f"Send a time between {_FIRST_YEAR} and {_LAST_YEAR}.")
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _invalid(param: str, message: str) -> ValidationFailed:
    return ValidationFailed(message, param=param, problems=[FieldProblem(param, message)])
