"""From a row of ``jobs`` to the job resource of the wire."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from models.ids import BATCH, JOB, to_wire
from models.lifecycle import TERMINAL, JobStatus
from models.pricing import Usage, as_wire

Row = Mapping[Any, Any]  # Any: columns of several types, under keys as SQLAlchemy types them
Resource = dict[str, Any]  # Any: JSON

MAX_RETRY_AFTER_S = 30
_USAGE = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens", "estimated")
_ROUTING_ORDER = ("strategy", "reason", "candidates")
_RESULT_ORDER = ("text", "finish_reason", "model")


def job_resource(row: Row, now: datetime | None = None) -> Resource:
    """The job resource of a row of SELECT_JOB."""
    status = JobStatus(row["status"])
    finished = status in TERMINAL
    usage = usage_of(row)
    job_id = to_wire(JOB, row["id"])
    return {
        "id": job_id,
        "object": "job",
        "kind": row["kind"],
        "status": status.value,
        "progress": 1.0 if finished else 0.0,
        "status_url": status_url(job_id),
        "model": row["model"],
        "tier": row["tier"],
        "queue": row["queue"],
        "routing": _in_order(row["routing"], _ROUTING_ORDER),
        "created_at": timestamp(row["created_at"]),
        "started_at": _timestamp_or_none(row["started_at"]),
        "finished_at": _timestamp_or_none(row["finished_at"]),
        "expires_at": timestamp(row["expires_at"]),
        "next_attempt_at": _next_attempt(status, row["next_attempt_at"], now or datetime.now(UTC)),
        "result": _in_order(row["result"], _RESULT_ORDER),
        "error": row["error"],
        "usage": usage.as_wire() if finished or usage.total_tokens else None,
        "cost_usd": as_wire(row["cost_usd"]),
        "attempts": [_attempt_resource(attempt) for attempt in row["attempts"] or ()],
        "batch_id": None if row["batch_id"] is None else to_wire(BATCH, row["batch_id"]),
        "conversation_id": None,
        "user": row["end_user"],
        "team": row["team"],
        "metadata": row["labels"],
    }


def usage_of(row: Row) -> Usage:
    """What a job has used: the tokens of all its attempts, with their details."""
    cached, reasoning = (
        sum(attempt[name] for attempt in row["attempts"] or ()) for name in ("cached_input_tokens", "reasoning_tokens")
    )
    return Usage(row["input_tokens"], row["output_tokens"], cached, reasoning)


def page(rows: Sequence[Row], limit: int) -> Resource:
    """A list object of at most ``limit`` jobs; a row more than that says that there is another page."""
    data = [job_resource(row) for row in rows[:limit]]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(rows) > limit,
    }


def is_finished(row: Row) -> bool:
    """Whether the row's job is in a terminal state."""
    return JobStatus(row["status"]) in TERMINAL


def retry_after_s(row: Row, now: datetime | None = None) -> int:
    """Whole seconds after which to ask again: until the next attempt, else a tenth of the job's age."""
    now = now or datetime.now(UTC)
    wait: float = (now - row["created_at"]).total_seconds() / 10
    if row["status"] == JobStatus.QUEUED:
        wait = max(wait, (row["next_attempt_at"] - now).total_seconds())
    return min(MAX_RETRY_AFTER_S, max(1, math.ceil(wait)))


def status_url(job_id: str) -> str:
    """Where a job's state is read."""
    return f"/status/{job_id}"


def timestamp(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds, such as ``2026-11-21T06:00:00.123Z``."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _timestamp_or_none(moment: datetime | None) -> str | None:
    return None if moment is None else timestamp(moment)


def _next_attempt(status: JobStatus, moment: datetime, now: datetime) -> str | None:
    return timestamp(moment) if status is JobStatus.QUEUED and moment > now else None


def _in_order(stored: Row | None, order: Sequence[str]) -> Resource | None:
    """A JSON object with its members in the contract's order, which JSONB does not keep."""
    if stored is None:
        return None
    return {**{name: stored[name] for name in order if name in stored}, **stored}


def _attempt_resource(attempt: Row) -> Resource:
    return {
        "number": attempt["number"],
        "model": attempt["model"],
        "provider": attempt["provider"],
        "outcome": attempt["outcome"],
        "error": attempt["error"],
        "started_at": timestamp(datetime.fromisoformat(attempt["started_at"])),
        "duration_ms": attempt["duration_ms"],
        "time_to_first_token_ms": attempt["time_to_first_token_ms"],
        "usage": Usage(**{name: attempt[name] for name in _USAGE}).as_wire(),
        "cost_usd": as_wire(Decimal(attempt["cost_usd"])),
        "adapted": attempt["adapted"] or [],
    }
