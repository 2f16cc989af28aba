"""Looks at budgets while they are used: their balances, and whether they are ever overspent."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx

from tests.stack import Database

BALANCES = """
    SELECT p.id, p.limit_usd, p.spent_usd + coalesce(m.spent, 0) AS spent, p.reserved_usd + coalesce(m.reserved, 0)
           AS reserved
    FROM budget_periods p
    LEFT JOIN LATERAL (SELECT sum(spent_delta) AS spent, sum(reserved_delta) AS reserved
                       FROM budget_movements WHERE period_id = p.id) m ON true
"""
HELD = """
    SELECT coalesce(sum(reserved_usd), 0) FROM jobs
    WHERE status IN ('queued', 'in_progress') AND cardinality(budget_periods) > 0
"""


@dataclass
class Watch:
    """What a checker saw: how often it looked, the fullest it was, and every moment that must not be."""

    looks: int = 0
    fullest: Decimal = Decimal(0)
    overspent: list[dict[str, Any]] = field(default_factory=list)  # Any: columns of several types


@contextmanager
def watched(database_url: str, interval_s: float = 0.005) -> Iterator[Watch]:
    """Look at every budget again and again until the block ends."""
    watch, stop = Watch(), threading.Event()

    def look() -> None:
        with Database(database_url) as database:
            while not stop.is_set():
                for row in database.rows(BALANCES):
                    committed = row["spent"] + row["reserved"]
                    watch.fullest = max(watch.fullest, committed)
                    if committed > row["limit_usd"] or row["spent"] < 0 or row["reserved"] < 0:
                        watch.overspent.append(row)
                watch.looks += 1
                stop.wait(interval_s)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield watch
    finally:
        stop.set()
        thread.join()


def put_budget(url: str, api_key: str, limit_usd: object, **fields: object) -> dict[str, Any]:  # Any: JSON
    """Create or change a budget over HTTP; fails the test when it is refused."""
    body = {"scope": "tenant", "window": "total", "limit_usd": str(limit_usd)} | fields
    response = httpx.put(f"{url}/v1/budgets", json=body, headers={"authorization": f"Bearer {api_key}"}, timeout=30)
    assert response.status_code == 200, response.text
    budget: dict[str, Any] = response.json()
    return budget


def assert_no_drift(database: Database) -> None:
    """When every job has finished, what is spent is what the ledger says, and nothing is reserved."""
    assert database.unfinished() == 0
    ledger = database.value("SELECT coalesce(sum(cost_usd), 0) FROM ledger_entries")
    for row in database.rows(BALANCES):
        assert (row["spent"], row["reserved"]) == (ledger, 0), row
    jobs = database.value("SELECT coalesce(sum(cost_usd + coalesce(cost_rest_usd, 0)), 0) FROM jobs")
    assert jobs == ledger


def worst_case(database: Database, url: str, api_key: str, **fields: object) -> Decimal:
    """What a job of these fields reserves: asked of a job that is made without a budget and cancelled."""
    headers = {"authorization": f"Bearer {api_key}"}
    job = httpx.post(f"{url}/v1/jobs", json=fields, headers=headers, timeout=30)
    assert job.status_code == 202, job.text
    cancelled = httpx.post(f"{url}/v1/jobs/{job.json()['id']}/cancel", headers=headers, timeout=30)
    assert cancelled.status_code == 200
    return Decimal(database.value("SELECT reserved_usd FROM jobs ORDER BY id DESC LIMIT 1"))
