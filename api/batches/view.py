"""From a row of SELECT_BATCH to the batch resource: OpenAI's Batch object, with what Headrace knows besides.

OpenAI's times are unix seconds; ``paused_at`` and ``estimated_finish_at``, which are ours, too.
"""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from time import time
from typing import Any

from models.batch import ENDED
from models.ids import BATCH, FILE, to_wire
from models.job import PRIORITIES
from models.pricing import as_wire

Row = Mapping[Any, Any]  # Any: columns of several types
Resource = dict[str, Any]  # Any: JSON

RATE_S = 15.0
"""Seconds over which a batch's speed is measured."""

_ENDINGS = ("completed", "failed", "cancelled", "expired")
_TIMES = (
    "created_at",
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
    "paused_at",
)
_PRIORITY_NAMES = {number: name for name, number in PRIORITIES.items()}


def batch_to_wire(row: Row, now: float | None = None) -> Resource:
    """The batch resource of a row of SELECT_BATCH; ``now`` in unix seconds."""
    batch_id = to_wire(BATCH, row["id"])
    counts = _counts(row)
    done = counts["total"] - counts["queued"] - counts["in_progress"]
    speed = _rows_per_s(row, done - int(row["refused"]))
    left = counts["total"] - done
    times = {name: _unix(row[name]) for name in _TIMES}
    goes_on = row["status"] == "in_progress" and left and speed
    return {
        "id": batch_id,
        "object": "batch",
        "endpoint": row["endpoint"],
        "model": row["model"],
        "errors": None if row["errors"] is None else {"object": "list", "data": row["errors"]},
        "input_file_id": _file(row["input_file_id"]),
        "completion_window": row["completion_window"],
        "status": row["status"],
        "output_file_id": _file(row["output_file_id"]),
        "error_file_id": _file(row["error_file_id"]),
        **times,
        "request_counts": {
            "total": counts["total"],
            "completed": counts["completed"],
            "failed": done - counts["completed"],
        },
        "usage": _usage(row),
        "metadata": row["labels"],
        "name": row["name"],
        "priority": _PRIORITY_NAMES[row["priority"]],
        "max_parallel": row["max_parallel"],
        "dedupe": row["dedupe"],
        "pause_reason": row["pause_reason"],
        "progress": _progress(row, done),
        "counts": counts,
        "cost_usd": as_wire(Decimal(row["cost_usd"])),
        "reserved_usd": as_wire(row["reserved_usd"] + row["reserved_by_jobs"]),
        "rows_per_s": speed,
        "estimated_finish_at": int((now or time()) + left / speed) if goes_on and speed else None,
        "user": row["end_user"],
        "team": row["team"],
        "results_url": f"/v1/batches/{batch_id}/results",
    }


def _counts(row: Row) -> dict[str, int]:
    ended = {name: int(row[name]) for name in _ENDINGS}
    in_progress = int(row["in_progress"])
    queued = max(0, row["total"] - sum(ended.values()) - in_progress)
    return {"total": row["total"], "queued": queued, "in_progress": in_progress, **ended}


def _progress(row: Row, done: int) -> float:
    if row["status"] in ENDED:
        return 1.0
    return round(done / row["total"], 6) if row["total"] else 0.0


def _rows_per_s(row: Row, done: int) -> float | None:
    """Rows a second lately, or, where none ended lately, since the batch began; null while it does not run."""
    if row["status"] != "in_progress" or not row["recent_s"]:
        return None
    lately = row["recent"] / row["recent_s"]
    speed = lately or done / row["age_s"]
    return round(speed, 3) or None


def _usage(row: Row) -> Resource:
    given, made = int(row["input_tokens"]), int(row["output_tokens"])
    return {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": int(row["cached_input_tokens"])},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": int(row["reasoning_tokens"])},
        "total_tokens": given + made,
    }


def _unix(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())


def _file(file_id: Any) -> str | None:  # Any: a UUID or null
    return None if file_id is None else to_wire(FILE, file_id)
