"""Whose turn it is: the relay's selection on a real Postgres."""

import re
from uuid import UUID

from models.dispatch import DISPATCH
from models.ids import new_id
from tests.stack import Database


def dispatch(database: Database, room: int, *, rows: bool = False) -> list[UUID]:
    """Mark the next jobs as published and return their ids, in order."""
    statement = re.sub(r"(?<!:):(queue|room|rows)\b", r"%(\1)s", DISPATCH.text)
    assert database.api_key
    return [row["id"] for row in database.named_rows(statement, {"queue": "mock", "room": room, "rows": rows})]


def new_tenant(database: Database, name: str, weight: int = 1) -> UUID:
    tenant_id = new_id()
    database.rows("INSERT INTO tenants (id, name, weight) VALUES (%s, %s, %s)", tenant_id, name, weight)
    return tenant_id


def tenants_of(database: Database, ids: list[UUID]) -> dict[str, int]:
    rows = database.rows(
        "SELECT t.name, count(*) FROM jobs j JOIN tenants t ON t.id = j.tenant_id WHERE j.id = ANY(%s) GROUP BY 1",
        ids,
    )
    return {row["name"]: row["count"] for row in rows}


def test_a_tenants_jobs_go_by_priority_then_age(database: Database) -> None:
    low = database.submit(["a", "b"], priority=2)
    normal = database.submit(["c", "d"], priority=1)
    high = database.submit(["e"], priority=0)
    assert dispatch(database, 4) == [*high, *normal, low[0]]
    assert dispatch(database, 4) == [low[1]]
    assert dispatch(database, 4) == []


def test_tenants_share_a_queue_evenly_whatever_their_backlog(database: Database) -> None:
    database.submit([str(n) for n in range(500)], priority=0)
    other = new_tenant(database, "other")
    database.submit(["x", "y", "z"], tenant_id=other, priority=2)
    assert tenants_of(database, dispatch(database, 4)) == {"development": 2, "other": 2}


def test_a_tenant_that_fills_the_window_waits_for_the_others(database: Database) -> None:
    database.submit([str(n) for n in range(100)])
    assert len(dispatch(database, 10)) == 10
    other = new_tenant(database, "other")
    database.submit([str(n) for n in range(100)], tenant_id=other)
    assert tenants_of(database, dispatch(database, 10)) == {"other": 10}
    assert tenants_of(database, dispatch(database, 10)) == {"development": 5, "other": 5}


def test_weights_divide_a_queue(database: Database) -> None:
    heavy = new_tenant(database, "heavy", weight=3)
    database.submit([str(n) for n in range(100)])
    database.submit([str(n) for n in range(100)], tenant_id=heavy)
    assert tenants_of(database, dispatch(database, 40)) == {"development": 10, "heavy": 30}


def test_jobs_that_are_not_due_are_passed_over(database: Database) -> None:
    later = database.submit(["later"], priority=0)
    database.rows("UPDATE jobs SET next_attempt_at = now() + interval '1 hour' WHERE id = ANY(%s)", later)
    now = database.submit(["now"], priority=2)
    assert dispatch(database, 10) == now


def test_a_tenants_single_jobs_go_before_its_rows_of_batches(database: Database) -> None:
    low, high = database.submit(["row"], priority=5), database.submit(["row"], priority=3)
    single = database.submit(["single"], priority=2)
    assert dispatch(database, 1, rows=True) == []
    assert dispatch(database, 4) == single
    assert dispatch(database, 4, rows=True) == [*high, *low]


def test_rows_and_single_jobs_are_published_apart_and_leave_each_other_their_fair_share(database: Database) -> None:
    tenant_id = new_tenant(database, "batches")
    rows = database.submit(["row"] * 4, tenant_id=tenant_id)
    database.rows("UPDATE jobs SET priority = 4 WHERE id = ANY(%s)", list(rows))
    singles = database.submit(["single"] * 4, tenant_id=new_tenant(database, "singles"))
    published = dispatch(database, room=4)
    assert len(published) == 2
    assert set(published) < set(singles)
    assert set(dispatch(database, room=6, rows=True)) == set(rows)
