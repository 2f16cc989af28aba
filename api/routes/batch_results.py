"""What came of a batch's rows, at any time."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.responses import Response, StreamingResponse

from api.batches.results import csv_results, dialect_of, jsonl_results
from api.deps import BatchId, CallerDep, ServicesDep
from api.openapi import refusals
from api.responses import attachment
from models.database import read_one
from models.errors import NotFound
from models.ids import BATCH, to_wire
from models.results import SELECT_SHEET

router = APIRouter(prefix="/v1/batches", tags=["Batches"])

_STREAM = {"description": "The results, streamed.", "content": {"text/csv": {}, "application/x-ndjson": {}}}


@router.get("/{batch_id}/results", responses={200: _STREAM, **refusals(404, 422)})
async def get_results(
    services: ServicesDep,
    caller: CallerDep,
    batch_id: BatchId,
    format: Annotated[Literal["csv", "jsonl"], Query()] = "csv",  # noqa: A002 - its name on the wire
    order: Annotated[Literal["input", "finished"], Query(description="The order of the rows.")] = "input",
    raw: Annotated[
        bool, Query(description="Leave cells of the CSV as they are, also those that a spreadsheet would execute.")
    ] = False,
) -> Response:
    """Read the rows that have a result so far.

    In CSV these are the input's columns and `output`, `error`, `model`, `input_tokens`, `output_tokens`, `cost_usd`,
    with the byte-order mark, the separator and the line ends of the input.
    """
    sheet = await read_one(services.pools.light, SELECT_SHEET, {"id": batch_id, "tenant_id": caller.tenant_id})
    if sheet is None:
        raise NotFound("There is no such batch.")
    headers = attachment(f"{to_wire(BATCH, batch_id)}.{format}")
    if format == "csv":
        content = csv_results(services.reads.of(caller.tenant_id), sheet, order, raw=raw)
        media_type = f"text/csv; charset={dialect_of(sheet).encoding}"
        return StreamingResponse(content, headers=headers, media_type=media_type)
    content = jsonl_results(services.reads.of(caller.tenant_id), batch_id, order)
    return StreamingResponse(content, headers=headers, media_type="application/x-ndjson")
