"""How Postgres runs a statement: its plan, and how many rows of a table it reads."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import transaction

Plan = dict[str, Any]  # Any: JSON of Postgres's


class _Undo(Exception):
    """Ends a transaction without keeping what it did."""


async def explain(engine: AsyncEngine, statement: TextClause, params: Mapping[str, object]) -> Plan:
    """Run a statement, undo what it did, and give its plan with the actual numbers of rows."""
    plan: Plan = {}
    try:
        async with transaction(engine) as connection:
            explained = text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement.text}")
            (found,) = (await connection.execute(explained, params)).scalar_one()
            plan = found if isinstance(found, dict) else json.loads(found)
            raise _Undo
    except _Undo:
        return dict(plan["Plan"])


def nodes(plan: Plan) -> Iterator[Plan]:
    """A plan's steps."""
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def rows_read(plan: Plan, table: str) -> int:
    """How many rows of a table a plan looked at, those that it threw away included."""
    removed = ("Rows Removed by Filter", "Rows Removed by Index Recheck", "Rows Removed by Join Filter")
    read = 0.0
    for node in nodes(plan):
        if node.get("Relation Name") == table and "Scan" in node["Node Type"]:
            read += (node["Actual Rows"] + sum(node.get(name, 0) for name in removed)) * node["Actual Loops"]
    return round(read)


def scans(plan: Plan, table: str) -> set[str]:
    """The indexes by which a plan reads a table; an empty name for a scan of the table itself."""
    return {
        node.get("Index Name", "")
        for node in nodes(plan)
        if node.get("Relation Name") == table and node["Node Type"] in ("Seq Scan", "Index Scan", "Index Only Scan")
    } | {node["Index Name"] for node in nodes(plan) if node["Node Type"] == "Bitmap Index Scan"}


def pages_read(plan: Plan) -> int:
    """How many pages a plan looked at, in memory or not."""
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
