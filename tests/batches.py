"""Batches for tests: recorded as the API records them, without it."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

from models.database import dump_json
from models.ids import new_id
from tests.stack import Database, wait_until

ENDED = ("completed", "expired", "cancelled", "failed")
WAY = {"model": "echo", "route": ["echo"], "tier": "mock", "queue": "mock", "routing": None}


def new_batch(
    database: Database,
    prompts: Sequence[str],
    *,
    reserved_usd: Decimal = Decimal(0),
    same_as: Mapping[int, int] | None = None,
    ways: Sequence[Mapping[str, object]] = (WAY,),
    **columns: object,
) -> UUID:
    """Record a batch of a template "{{text}}!", whose rows reserve ``reserved_usd`` each in no budget."""
    batch_id = new_id()
    same = same_as or {}
    values: dict[str, Any] = {  # Any: columns of several types
        "id": batch_id,
        "tenant_id": database.tenant_id,
        "status": "in_progress",
        "endpoint": "/v1/chat/completions",
        "routes": dump_json(list(ways)),
        "request": dump_json({"max_tokens": 16, "messages": [{"role": "system", "content": "Be brief."}]}),
        "columns": ["text"],
        "template": dump_json([{"column": 0}, {"text": "!"}]),
        "completion_window": "24h",
        "total": len(prompts),
        "dedupe": bool(same),
        "reserved_usd": reserved_usd * (len(prompts) - len(same)),
        **columns,
    }
    times = {"in_progress_at": "now()", "expires_at": "now() + CAST(%s AS interval)"}
    names = ", ".join([*values, *(name for name in times if name not in values)])
    marks = ", ".join([*("%s" for _ in values), *(sql for name, sql in times.items() if name not in values)])
    given = [*values.values(), *([values["completion_window"]] if "expires_at" not in values else [])]
    rows = [
        {"number": n, "same_as": same.get(n), "reserved_usd": 0 if n in same else reserved_usd, "text": prompt}
        for n, prompt in enumerate(prompts, 1)
    ]
    database.rows(
        f"WITH made AS (INSERT INTO batches ({names}) VALUES ({marks}))"
        " INSERT INTO batch_rows (batch_id, number, line, custom_id, cells, same_as, reserved_usd)"
        " SELECT %s, number, number + 1, 'r' || number, ARRAY[r.text], same_as, reserved_usd"
        " FROM json_to_recordset(CAST(%s AS json)) AS r(number int, same_as int, reserved_usd numeric, text text)",
        *given,
        batch_id,
        dump_json(rows),
    )
    return batch_id


def batch(database: Database, batch_id: UUID) -> dict[str, Any]:  # Any: columns of several types
    """A batch's line."""
    return database.one("SELECT * FROM batches WHERE id = %s", batch_id)


def counts(database: Database, batch_id: UUID) -> dict[str, Any]:  # Any: numbers
    """The sum of a batch's counts, as they are kept."""
    names = ("completed", "failed", "cancelled", "expired", "unpaid", "input_tokens", "output_tokens", "cost_usd")
    sums = ", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in names)
    return database.one(f"SELECT {sums} FROM batch_counts WHERE batch_id = %s", batch_id)


def wait_until_ended(database: Database, batch_id: UUID, timeout_s: float = 60.0) -> str:
    """Wait until a batch has ended; how."""
    wait_until(lambda: batch(database, batch_id)["status"] in ENDED, timeout_s)
    return str(batch(database, batch_id)["status"])


def assert_rows_ended_once(database: Database, batch_id: UUID) -> None:
    """Every row has one job of its round, or none where it never ran; counts and costs are those of the jobs."""
    jobs = database.rows(
        "SELECT j.status, sum(1 + coalesce(j.batch_copies, 0)) AS rows FROM batch_rows r JOIN jobs j"
        " ON j.batch_id = r.batch_id AND j.batch_row = r.number AND j.batch_round = r.round"
        " WHERE r.batch_id = %s GROUP BY 1",
        batch_id,
    )
    unrun = database.rows(
        "SELECT b.endings[r.round + 1] AS status, count(*) AS rows FROM batches b JOIN batch_rows r"
        " ON r.batch_id = b.id LEFT JOIN batch_rows f ON f.batch_id = b.id AND f.number = coalesce(r.same_as, r.number)"
        " LEFT JOIN jobs j ON j.batch_id = b.id AND j.batch_row = f.number AND j.batch_round = f.round"
        " WHERE b.id = %s AND j.id IS NULL GROUP BY 1",
        batch_id,
    )
    found: dict[str, int] = dict.fromkeys(("completed", "failed", "cancelled", "expired"), 0)
    for row in [*jobs, *unrun]:
        found[row["status"]] += row["rows"]
    counted = counts(database, batch_id)
    assert {name: counted[name] for name in found} == found
    assert sum(found.values()) == batch(database, batch_id)["total"]
    ledger = database.one(
        "SELECT coalesce(sum(l.cost_usd), 0) AS cost_usd, coalesce(sum(l.input_tokens), 0) AS input_tokens"
        " FROM ledger_entries l JOIN jobs j ON j.id = l.job_id WHERE j.batch_id = %s",
        batch_id,
    )
    assert {name: counted[name] for name in ledger} == ledger
