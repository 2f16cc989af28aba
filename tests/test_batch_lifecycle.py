"""A batch over real servers: whatever dies, every row has one answer, and counts and costs are exact; and nobody waits
for anybody's batch."""

import random
import time
from decimal import Decimal
from statistics import quantiles
from uuid import UUID

import httpx

from models.ids import new_id
from tests.batches import assert_rows_ended_once, batch, counts, new_batch, wait_until_ended
from tests.money import assert_no_drift
from tests.stack import Database, Stack, kill, wait_until

_EACH = Decimal("0.001")


def new_budget(database: Database, limit: Decimal) -> int:
    """A budget of the development tenant; its period."""
    return int(
        database.value(
            'WITH made AS (INSERT INTO budgets (id, tenant_id, scope, "window", limit_usd, alert_at)'
            " VALUES (%s, %s, 'tenant', 'total', %s, 0.8) RETURNING id, limit_usd)"
            " INSERT INTO budget_periods (budget_id, period_start, limit_usd)"
            " SELECT id, timestamptz 'epoch', limit_usd FROM made RETURNING id",
            new_id(),
            database.tenant_id,
            limit,
        )
    )


def budgeted_batch(database: Database, rows: int) -> UUID:
    """A batch that holds its worst case in a budget."""
    period = new_budget(database, rows * _EACH)
    batch_id = new_batch(
        database, [f"row {n}" for n in range(1, rows + 1)], reserved_usd=_EACH, budget_periods=[period]
    )
    database.rows("UPDATE budget_periods SET reserved_usd = %s WHERE id = %s", rows * _EACH, period)
    return batch_id


def test_everything_may_die_under_a_batch(stack: Stack, database: Database) -> None:
    """Workers, relays and the API are killed again and again; some calls fail and are made again."""
    rows = 400
    flaky = {"latency_s": 0.05, "error": "timeout", "error_rate": 0.1, "retry_after_s": 0.05}
    stack.catalog({"echo": {"retries": 20, "mock": flaky}}, breaker={"min_calls": 100_000})
    stack.settings |= {"HEADRACE_LEASE_S": "1.5", "HEADRACE_MAX_DELIVERIES": "50"}
    batch_id = budgeted_batch(database, rows)
    relays = [stack.relay(), stack.relay()]
    workers = [stack.worker(concurrency=4), stack.worker(concurrency=4)]
    api, _ = stack.api()
    for share in (0.1, 0.3, 0.5, 0.7):
        wait_until(lambda: counts(database, batch_id)["completed"] >= share * rows, 90)  # noqa: B023 - used at once
        kill(workers.pop(0))
        kill(relays.pop(0))
        workers.append(stack.worker(concurrency=4))
        relays.append(stack.relay())
        if share == 0.3:
            kill(api)
    assert wait_until_ended(database, batch_id, 120) == "completed"
    assert_rows_ended_once(database, batch_id)
    assert counts(database, batch_id)["completed"] == rows
    wrong = (
        "SELECT j.id, j.result, j.request, j.rescues, r.number, r.cells FROM jobs j"
        " JOIN batch_rows r ON r.batch_id = j.batch_id AND r.number = j.batch_row"
        " WHERE j.result ->> 'text' IS DISTINCT FROM r.cells[1] || '!'"
    )
    assert database.rows(wrong) == []
    assert database.value("SELECT count(*) FROM jobs") == rows
    assert {row["outcome"] for row in database.rows("SELECT DISTINCT outcome FROM attempts")} >= {
        "completed",
        "failed",
        "lost",
    }
    wait_until(lambda: database.value("SELECT count(*) FROM budget_movements") == 0)
    assert_no_drift(database)
    assert batch(database, batch_id)["reserved_usd"] == 0


def test_a_single_job_does_not_wait_behind_anybodys_batch(stack: Stack, database: Database) -> None:
    """Neither its own tenant's nor another's; two batches of one tenant go on together."""
    service_s = 0.1
    stack.catalog({"echo": {"mock": {"latency_s": service_s}}})
    stack.relay()
    stack.worker(concurrency=8)
    first = new_batch(database, [f"row {n}" for n in range(5000)])
    wait_until(lambda: database.count("completed") > 16)
    second = new_batch(database, [f"row {n}" for n in range(5000)], priority=2)
    third = new_batch(database, [f"row {n}" for n in range(5000)])
    other = new_id()
    database.rows("INSERT INTO tenants (id, name) VALUES (%s, 'other')", other)
    waits: dict[UUID, list[float]] = {database.tenant_id: [], other: []}
    wait_until(lambda: counts(database, third)["completed"] > 0)
    before = counts(database, first)["completed"], counts(database, third)["completed"]
    for _ in range(15):
        for tenant_id, waited in waits.items():
            (job_id,) = database.submit(["single"], tenant_id=tenant_id)
            stack.wake()
            started = "SELECT extract(epoch FROM started_at - created_at)::float FROM jobs WHERE id = %s"
            wait_until(lambda: database.value(started, job_id) is not None, 10, 0.01)  # noqa: B023 - used at once
            waited.append(database.value(started, job_id))
            time.sleep(random.uniform(0, service_s))
    after = counts(database, first)["completed"], counts(database, third)["completed"]
    for tenant_id, waited in waits.items():
        assert quantiles(waited, n=20)[-2] < 4 * service_s, (tenant_id, waited)
    shares = [later - earlier for earlier, later in zip(before, after, strict=True)]
    assert min(shares) > 0.6 * max(shares) > 0, shares
    assert counts(database, second)["completed"] == 0  # of low priority: after the others


def test_tenants_share_by_weight_whatever_the_size_of_their_batches(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {"mock": {"latency_s": 0.05}}})
    heavy = new_id()
    database.rows("INSERT INTO tenants (id, name, weight) VALUES (%s, 'heavy', 3)", heavy)
    light_batch = new_batch(database, [f"row {n}" for n in range(3000)])
    heavy_batch = new_batch(database, [f"row {n}" for n in range(3000)], tenant_id=heavy)
    stack.relay()
    stack.worker(concurrency=8)
    wait_until(lambda: counts(database, light_batch)["completed"] >= 100)
    ratio = counts(database, heavy_batch)["completed"] / counts(database, light_batch)["completed"]
    assert 2 < ratio < 4


def test_a_cancelled_batch_stops_the_calls_that_run(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {"mock": {"latency_s": 30}}})
    stack.relay()
    stack.worker(concurrency=8)
    _, url = stack.api()
    batch_id = new_batch(database, [f"row {n}" for n in range(100)])
    wait_until(lambda: database.count("in_progress") == 8)
    headers = {"authorization": f"Bearer {database.api_key}"}
    asked = time.monotonic()
    answer = httpx.post(f"{url}/v1/batches/batch_{batch_id.hex}/cancel", headers=headers, timeout=30)
    assert answer.json()["status"] == "cancelling"
    assert wait_until_ended(database, batch_id, 15) == "cancelled"
    assert time.monotonic() - asked < 10
    assert counts(database, batch_id)["cancelled"] == 100
    assert_rows_ended_once(database, batch_id)


def test_an_uploaded_batch_waits_while_its_budget_is_too_low(stack: Stack, database: Database) -> None:
    """From the file to the last row through real processes; what it cost is what was spent, and nothing is held."""
    stack.catalog({"echo": {"mock": {"latency_s": 0.02}}})
    stack.relay()
    stack.worker(concurrency=4)
    _, url = stack.api()
    rows = 300
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {database.api_key}"}, timeout=30) as client:

        def limit(amount: object) -> None:
            budget = {"scope": "tenant", "window": "total", "limit_usd": str(amount)}
            client.put("/v1/budgets", json=budget).raise_for_status()

        def status() -> tuple[str, str | None]:
            now = client.get(f"/v1/batches/{made['id']}").json()
            return now["status"], now["pause_reason"]

        limit(100)
        made = client.post(
            "/v1/batches/upload",
            files={"file": ("rows.csv", "text\n" + "".join(f"row {n}\n" for n in range(rows)))},
            data={"prompt": "Say {{text}}", "model": "echo", "max_tokens": "8"},
        ).json()
        wait_until(lambda: database.count("completed") > 10)
        limit("0.0001")
        wait_until(lambda: status() == ("paused", "budget_exhausted"), 20)
        wait_until(lambda: database.count("in_progress") == 0)
        done = database.count("completed")
        assert done < rows
        time.sleep(1)
        assert database.count("completed") == done
        limit(100)
        wait_until(lambda: status()[0] == "completed", 60)
        batch_id = UUID(made["id"].removeprefix("batch_"))
        assert_rows_ended_once(database, batch_id)
        assert counts(database, batch_id)["completed"] == rows
        cost = client.get(f"/v1/batches/{made['id']}").json()["cost_usd"]
    assert Decimal(cost) == database.value("SELECT sum(cost_usd) FROM ledger_entries") > 0
    wait_until(lambda: database.value("SELECT count(*) FROM budget_movements") == 0)
    assert_no_drift(database)
    assert database.value("SELECT reserved_usd FROM budget_periods") == 0
