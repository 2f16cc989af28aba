"""Books what attempts may have cost whose workers were lost, before the rescue takes their jobs back."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncEngine

from models.catalog import LLM, Catalog
from models.database import WAITING_HELPS, classify, describe, dump_json, fetch_all, transaction
from models.errors import FailureCode, JobFailure
from models.estimates import worst_usage
from models.grouping import run_in_parts
from models.lost import BOOK_LOST, GIVE_UP_BOOKING, SELECT_UNBOOKED
from models.pricing import Price, cost_of
from models.reservation import ADD_RESERVED, LOCK_PERIODS_OF_JOBS, choose_top_ups

_AT_ONCE = 50
"""Jobs whose requests are read at a time; each may have megabytes."""
_NO_MONEY = JobFailure(FailureCode.BUDGET_EXCEEDED, "what a lost attempt may have cost left too little for another one")
_EXPIRED = JobFailure(FailureCode.EXPIRED, "the job was not finished in its time")
_NOTHING = Decimal(0)
Row = dict[str, Any]  # Any: columns of several types

log = structlog.get_logger()


class LostWork:
    """What lost attempts may have cost; ``grace_s`` is how long a running job may pass its expiry."""

    def __init__(self, engine: AsyncEngine, catalog: Catalog, *, writer: UUID, grace_s: float) -> None:
        self._engine = engine
        self._catalog = catalog
        self._writer = writer
        self._grace_s = grace_s
        self.free = [name for name, llm in catalog.llms.items() if _is_free(llm)]

    async def book(self, *, orphans: bool) -> int:
        """Book the worst case of every attempt that was lost since the last look, of ``orphans`` too; how many there
        were."""
        params = {"free": self.free, "grace_s": self._grace_s, "limit": _AT_ONCE, "after": None, "orphans": orphans}
        total = 0
        while found := await fetch_all(self._engine, SELECT_UNBOOKED, params):
            params["after"] = found[-1]["job_id"]
            refused = await run_in_parts([self._estimate(row) for row in found], self._book, shared_fate=_is_shared)
            for row, error in refused:
                log.error("estimate.refused", job_id=row["job_id"].hex, error=describe(error))
                await fetch_all(self._engine, GIVE_UP_BOOKING, {"attempt_id": row["attempt_id"]})
            total += len(found)
        return total

    def _estimate(self, row: RowMapping) -> Row:
        usage = worst_usage(row["request"])
        llm = self._catalog.llms.get(row["llm"])
        if llm is None:  # it left the catalogue with its price
            price, cost = Price.zero(), row["reserved_usd"]
        else:
            price = llm.tariff.at(row["started_at"])
            cost = min(cost_of(usage, price.uncached), row["reserved_usd"])
        return {
            "job_id": row["job_id"],
            "attempt_id": row["attempt_id"],
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "input_price": price.uncached.input,
            "output_price": price.output,
            "cost_usd": cost,
        }

    async def _book(self, rows: Sequence[Row]) -> None:
        costs = {row["job_id"]: row["cost_usd"] for row in rows}
        async with transaction(self._engine) as connection:
            periods = await connection.execute(LOCK_PERIODS_OF_JOBS, {"job_ids": list(costs)})
            added = choose_top_ups(costs, periods.mappings())
            params = {
                "rows": dump_json([row | {"topped_up": row["job_id"] in added} for row in rows]),
                "writer": self._writer,
                "grace_s": self._grace_s,
                "no_money": dump_json(_NO_MONEY.as_wire()),
                "expired": dump_json(_EXPIRED.as_wire()),
            }
            booked = (await connection.execute(BOOK_LOST, params)).mappings().all()
            more = [
                {"period_id": period_id, "amount": costs[row["id"]]}
                for row in booked
                if row["status"] == "in_progress"
                for period_id in added.get(row["id"], ())
            ]
            await connection.execute(ADD_RESERVED, {"rows": dump_json(more)})


def _is_free(llm: LLM) -> bool:
    prices = [llm.tariff.first, *(price for _, price in llm.tariff.later)]
    return all(price.uncached.input == price.output == _NOTHING for price in prices)


def _is_shared(error: BaseException) -> bool:
    return classify(error) in WAITING_HELPS
