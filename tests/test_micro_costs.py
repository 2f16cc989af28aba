"""Costs below a millionth of a USD are kept and shown, from the worker to the budget."""

from decimal import Decimal
from typing import Any

import httpx
import psycopg
from alembic import command

from models.database import alembic_config
from tests.money import assert_no_drift, put_budget
from tests.stack import Database, Stack, wait_until

EACH = Decimal("0.00000048")
CHEAP = {"input_price": "0.02", "output_price": "0", "mock": {"input_tokens": 24, "output_tokens": 0}}
SHOWN = "0.00000048"


def test_a_cost_of_half_a_micro_is_booked_and_shown_everywhere(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": CHEAP})
    _, url = stack.api()
    stack.relay()
    stack.worker()
    budget = put_budget(url, database.api_key, 1)
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {database.api_key}"}, timeout=30) as client:
        jobs = [client.post("/v1/jobs", json={"prompt": "a", "model": "echo"}).json() for _ in range(3)]
        database.wait_until_finished()
        job = client.get(jobs[0]["status_url"]).json()
        assert (job["cost_usd"], job["attempts"][0]["cost_usd"]) == (SHOWN, SHOWN)
        (usage,) = client.get("/v1/usage").json()["data"]
        assert usage["cost_usd"] == "0.00000144"
        shown = client.get(f"/v1/budgets/{budget['id']}").json()
        assert (shown["spent_usd"], shown["remaining_usd"]) == ("0.00000144", "0.99999856")
        assert_no_drift(database)
        form = {"file": ("rows.csv", b"word\none\ntwo\n")}
        fields = {"prompt": "{{word}}", "model": "echo", "max_tokens": "4"}
        batch = client.post("/v1/batches/upload", files=form, data=fields).json()
        wait_until(lambda: client.get(f"/v1/batches/{batch['id']}").json()["status"] == "completed")
        rows = client.get(f"/v1/batches/{batch['id']}/results?format=csv").text.splitlines()
        assert [row.rpartition(",")[2] for row in rows[1:]] == [SHOWN, SHOWN]
        assert client.get(f"/v1/batches/{batch['id']}").json()["cost_usd"] == "0.00000096"
    assert database.value("SELECT sum(cost_usd) FROM ledger_entries") == 5 * EACH
    assert_no_drift(database)


def test_the_migration_rewrites_no_table_and_ends_no_prepared_statement(database_url: str) -> None:
    """What the processes of the version before have prepared returns the types that it returned."""
    config = alembic_config(database_url)
    command.downgrade(config, "20261121_0007")
    tables = ("jobs", "attempts", "ledger_entries", "batch_counts", "budget_periods", "budget_movements")
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as old:

        def files() -> list[Any]:  # Any: file numbers
            return [old.execute("SELECT pg_relation_filenode(%s)", (table,)).fetchone() for table in tables]

        prepared = [
            "SELECT cost_usd, reserved_usd FROM jobs",
            "SELECT reserved_usd FROM batches",
            "SELECT limit_usd FROM budget_periods",
            "SELECT coalesce(spent_usd, 0) + 0 AS spent FROM budget_periods",
            "SELECT coalesce(sum(cost_usd), 0) AS cost FROM ledger_entries",
        ]
        for statement in prepared:
            old.execute(statement, prepare=True)
        before = files()
        command.upgrade(config, "head")
        assert files() == before
        for statement in prepared:
            old.execute(statement, prepare=True)
