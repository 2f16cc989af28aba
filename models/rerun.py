"""Running rows of a batch again: they are given a further round, leave the counts, and reserve anew as a whole."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from models.batch import ENDED
from models.batchcontrol import AGAIN, LOCK_PARKED, MARK, SUM_MARKED, UNFED
from models.budget import OPEN_PERIODS
from models.database import dump_json
from models.reservation import ADD_RESERVED, LOCK_BALANCES, Balance, Refusal, balances_by_payer

NOT_COMPLETED = ("failed", "cancelled", "expired")

_GIVE_BACK = text("""
    INSERT INTO budget_movements (period_id, reserved_delta, spent_delta)
    SELECT p.id, -CAST(:amount AS numeric), 0 FROM budget_periods p WHERE p.id = ANY(CAST(:periods AS bigint[]))
""")

_PATIENTLY = text("SET LOCAL statement_timeout = '10min'")
"""To mark a million rows takes longer than a statement should."""


@dataclass(frozen=True, slots=True)
class Rerun:
    """Rows that are to run again: how many there are of each status, and what they reserve."""

    rows: Mapping[str, int]
    reserved_usd: Decimal


async def run_again(
    connection: AsyncConnection,
    batch: RowMapping,
    writer: UUID,
    *,
    statuses: Collection[str] = NOT_COMPLETED,
    only_unpaid: bool = False,
    with_spare: bool = False,
) -> Rerun | Refusal:
    """Let the rows of a batch that ended so run again; the transaction has locked the batch (LOCK_BATCH).

    With ``only_unpaid``: only failed rows whose budget was short. A budget that has no room for them is a Refusal, and
    the caller rolls back; ``with_spare`` asks for twice the room, so that rows which fail on every LLM and cost
    something each time are not tried until nothing is left. The rows are added up and the budgets are looked at before
    any row is written, and the budgets are locked after the last, since to write a million rows takes a while.
    """
    await connection.execute(_PATIENTLY)
    ended = batch["status"] in ENDED
    unfed: Sequence[RowMapping] = ()
    if ended and not only_unpaid:
        found = (await connection.execute(UNFED, {"id": batch["id"]})).mappings().all()
        unfed = [row for row in found if row["status"] in statuses]
    params = {"id": batch["id"], "statuses": sorted(statuses), "unpaid": only_unpaid}
    again = _sum([*(await connection.execute(SUM_MARKED, params)).mappings(), *unfed])
    if not again.rows:
        return again
    refusal = await _look_for_room(connection, batch, again.reserved_usd, with_spare=with_spare)
    if refusal is not None:
        return refusal
    marked = (await connection.execute(MARK, params)).mappings().all()
    again = _sum([*marked, *unfed])
    periods = await _reserve(connection, batch, again.reserved_usd, with_spare=with_spare)
    if isinstance(periods, Refusal):
        return periods
    if not ended:
        await connection.execute(LOCK_PARKED, {"id": batch["id"]})  # jobs are locked before counts
    await connection.execute(
        AGAIN,
        {
            "id": batch["id"],
            "writer": writer,
            "marked": bool(marked),
            "goes_on": bool(unfed) or not ended,
            "renew": ended,
            "reserved_usd": batch["reserved_usd"] + again.reserved_usd,
            "budget_periods": periods,
            "unpaid": sum(row["unpaid"] for row in marked),
            **{status: again.rows.get(status, 0) for status in NOT_COMPLETED},
        },
    )
    return again


def _sum(groups: Sequence[Mapping[Any, Any]]) -> Rerun:
    rows: dict[str, int] = {}
    for group in groups:
        rows[group["status"]] = rows.get(group["status"], 0) + int(group["rows"])
    return Rerun(rows, sum((group["reserved_usd"] for group in groups), Decimal(0)))


async def _look_for_room(
    connection: AsyncConnection, batch: RowMapping, more: Decimal, *, with_spare: bool
) -> Refusal | None:
    """What would refuse the reservation now; the budgets' locks are given back."""
    attempt = await connection.begin_nested()
    try:
        periods = await _reserve(connection, batch, more, with_spare=with_spare)
    finally:
        await attempt.rollback()
    return periods if isinstance(periods, Refusal) else None


async def _reserve(
    connection: AsyncConnection, batch: RowMapping, more: Decimal, *, with_spare: bool
) -> list[int] | Refusal:
    """Reserve what the batch holds and ``more`` in the periods that cover it now; these, or what refused it."""
    payer = {"rows": dump_json([{name: batch[name] for name in ("tenant_id", "team", "end_user", "api_key_id")}])}
    await connection.execute(OPEN_PERIODS, payer)
    found = balances_by_payer((await connection.execute(LOCK_BALANCES, payer)).mappings())
    balances: list[Balance] = next(iter(found.values()), [])
    held: Decimal = batch["reserved_usd"]
    old = list(batch["budget_periods"])
    wanted = {b.period_id: more + (0 if b.period_id in old else held) for b in balances}
    for balance in balances:
        asked = wanted[balance.period_id] + (more if with_spare else 0)
        if balance.remaining_usd < asked:
            return Refusal(balance, balance.remaining_usd, asked)
    added = [{"period_id": period_id, "amount": amount} for period_id, amount in wanted.items()]
    await connection.execute(ADD_RESERVED, {"rows": dump_json(added)})
    past = [period_id for period_id in old if period_id not in wanted]
    await connection.execute(_GIVE_BACK, {"amount": held, "periods": past})
    return list(wanted)
