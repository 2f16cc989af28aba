"""Reserving money: a job is recorded together with its worst case in every budget that covers it, or not at all.

Three ways, by what is known:

- ``INSERT_JOBS`` (:mod:`models.job`): no budget of the tenant exists.
- ``RESERVE_JOBS``: one statement for a group of jobs of any tenants. Where all of a tenant's jobs fit, they are
  recorded; where they do not, the tenant is named and nothing happened to it.
- ``LOCK_BALANCES``, ``SELECT_RECORDED``, :func:`choose`, ``RECORD_JOBS``: one transaction that decides job by job.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.budget import ALERTED, COVERING, EXHAUSTED, FOLDED, PERIOD_START, RESETS_AT, raised
from models.job import INSERT_INTO_JOBS, JOB_ROWS

Job = Mapping[str, Any]  # Any: columns of several types

_ASKED = f"""
    asked AS MATERIALIZED (
        SELECT * FROM {JOB_ROWS}
    ), who AS MATERIALIZED (
        SELECT DISTINCT tenant_id, team, end_user, api_key_id FROM asked
    )"""

_SAME = """{a}.tenant_id = {b}.tenant_id AND {a}.team IS NOT DISTINCT FROM {b}.team
              AND {a}.end_user IS NOT DISTINCT FROM {b}.end_user
              AND {a}.api_key_id IS NOT DISTINCT FROM {b}.api_key_id""".format(a="r", b="c")

_BOOKED = """
    total AS (
        SELECT x.period_id, sum(i.reserved_usd) AS reserved
        FROM inserted i, unnest(i.budget_periods) AS x(period_id) GROUP BY x.period_id
    )"""

_FOLDED_IN = f"""{FOLDED}, updated AS (
        UPDATE budget_periods p
        SET spent_usd = p.spent_usd + b.spent_delta, reserved_usd = p.reserved_usd + b.reserved_delta
        FROM balance b WHERE p.id = b.id AND (b.spent_delta <> 0 OR b.reserved_delta <> 0)
    ), alerted AS ({ALERTED}), exhausted AS ({EXHAUSTED})"""
"""Fold the settled movements into the periods of ``locked``; ``balance`` has what they come to."""

RESERVE_JOBS = text(f"""
    WITH {_ASKED}, covered AS MATERIALIZED (
        SELECT who.tenant_id, who.team, who.end_user, who.api_key_id, count(b.id) > count(p.id) AS unopened,
               coalesce(array_agg(p.id) FILTER (WHERE p.id IS NOT NULL), '{{}}') AS periods
        FROM who
        LEFT JOIN LATERAL ({COVERING}) b ON true
        LEFT JOIN budget_periods p ON p.budget_id = b.id AND p.period_start = {PERIOD_START}
        GROUP BY who.tenant_id, who.team, who.end_user, who.api_key_id
    ), locked AS MATERIALIZED (
        SELECT p.* FROM budget_periods p
        WHERE p.id IN (SELECT unnest(periods) FROM covered)
        ORDER BY p.id
        FOR NO KEY UPDATE
    ), {FOLDED}, wanted AS (
        SELECT c.tenant_id, x.period_id, sum(r.reserved_usd) AS reserved
        FROM asked r JOIN covered c ON {_SAME}, unnest(c.periods) AS x(period_id)
        GROUP BY c.tenant_id, x.period_id
    ), refused AS MATERIALIZED (
        SELECT tenant_id FROM covered WHERE unopened
        UNION
        SELECT w.tenant_id FROM wanted w LEFT JOIN balance b ON b.id = w.period_id
        WHERE b.id IS NULL OR b.spent_usd + b.reserved_usd + w.reserved > b.limit_usd
    ), inserted AS (
        {INSERT_INTO_JOBS}, c.periods
        FROM asked r JOIN covered c ON {_SAME}
        WHERE r.tenant_id NOT IN (SELECT tenant_id FROM refused)
        ON CONFLICT DO NOTHING
        RETURNING id, created_at, expires_at, reserved_usd, budget_periods
    ), {_BOOKED}, updated AS (
        UPDATE budget_periods p
        SET spent_usd = p.spent_usd + b.spent_delta,
            reserved_usd = p.reserved_usd + b.reserved_delta + coalesce(t.reserved, 0)
        FROM balance b LEFT JOIN total t ON t.period_id = b.id
        WHERE p.id = b.id AND (b.spent_delta <> 0 OR b.reserved_delta <> 0 OR t.reserved <> 0)
    ), alerted AS ({ALERTED}), exhausted AS ({EXHAUSTED})
    SELECT id, created_at, expires_at, CAST(NULL AS uuid) AS refused FROM inserted
    UNION ALL
    SELECT NULL, NULL, NULL, tenant_id FROM refused
""")
"""Record jobs, given as JOB_ROWS, with their reservations; returns those recorded, and the tenants whose jobs do
not all fit or whose budgets have no row for the current period yet (``refused``): of these nothing was recorded.

A row that is missing met its own id or its tenant's idempotency key and has reserved nothing.
"""

LOCK_BALANCES = text(f"""
    WITH {_ASKED}, covering AS MATERIALIZED (
        SELECT who.team AS of_team, who.end_user, who.api_key_id, b.*, p.id AS period_id, {RESETS_AT} AS resets_at
        FROM who, LATERAL ({COVERING}) b
        JOIN budget_periods p ON p.budget_id = b.id AND p.period_start = {PERIOD_START}
    ), locked AS MATERIALIZED (
        SELECT p.* FROM budget_periods p
        WHERE p.id IN (SELECT period_id FROM covering)
        ORDER BY p.id
        FOR NO KEY UPDATE
    ), {_FOLDED_IN}
    SELECT c.tenant_id, c.of_team AS team, c.end_user, c.api_key_id, c.period_id, c.id AS budget_id, c.scope,
           c.subject, c."window", c.alert_at, c.resets_at, b.limit_usd, b.spent_usd, b.reserved_usd
    FROM covering c JOIN balance b ON b.id = c.period_id
""")
"""Lock what covers these jobs and give the balances, one row per budget and group of jobs that it covers."""

SELECT_RECORDED = text("""
    SELECT id, tenant_id, idempotency_key FROM jobs WHERE id = ANY(CAST(:ids AS uuid[]))
    UNION
    SELECT j.id, j.tenant_id, j.idempotency_key
    FROM json_to_recordset(CAST(:keys AS json)) AS k(tenant_id uuid, idempotency_key text)
    JOIN jobs j ON j.tenant_id = k.tenant_id AND j.idempotency_key = k.idempotency_key
""")
"""Which of these jobs, or of these idempotency keys, are recorded."""

RECORD_JOBS = text(f"""
    WITH r AS MATERIALIZED (
        SELECT * FROM {JOB_ROWS}
    ), inserted AS (
        {INSERT_INTO_JOBS}, ARRAY(SELECT CAST(json_array_elements_text(budget_periods) AS bigint))
        FROM r
        ON CONFLICT DO NOTHING
        RETURNING id, created_at, expires_at, reserved_usd, budget_periods
    ), {_BOOKED}, updated AS (
        UPDATE budget_periods p SET reserved_usd = p.reserved_usd + t.reserved
        FROM total t WHERE p.id = t.period_id
    ), short AS (
        SELECT * FROM budget_periods WHERE id = ANY(CAST(:short AS bigint[]))
    ), exhausted AS (
        {raised("budget.exhausted", "p.spent_usd > 0 AND p.spent_usd >= b.alert_at * p.limit_usd", "short")}
    )
    SELECT id, created_at, expires_at FROM inserted
""")
"""Record the jobs that :func:`choose` let through; ``short``: the periods that were too short for others."""

LOCK_PERIODS_OF_JOBS = text(f"""
    WITH held AS MATERIALIZED (
        SELECT id, budget_periods FROM jobs WHERE id = ANY(CAST(:job_ids AS uuid[]))
    ), locked AS MATERIALIZED (
        SELECT p.* FROM budget_periods p
        WHERE p.id IN (SELECT unnest(budget_periods) FROM held)
        ORDER BY p.id
        FOR NO KEY UPDATE
    ), {_FOLDED_IN}
    SELECT h.id AS job_id, b.id AS period_id, b.limit_usd - b.spent_usd - b.reserved_usd AS remaining_usd
    FROM held h, unnest(h.budget_periods) AS x(period_id) JOIN balance b ON b.id = x.period_id
""")
"""Lock the periods that jobs have reserved in and say what is left in each."""

ADD_RESERVED = text("""
    UPDATE budget_periods p SET reserved_usd = p.reserved_usd + t.amount
    FROM (SELECT period_id, sum(amount) AS amount
          FROM json_to_recordset(CAST(:rows AS json)) AS r(period_id bigint, amount numeric)
          GROUP BY period_id) t
    WHERE p.id = t.period_id
""")
"""Reserve more in periods that this transaction has locked."""


@dataclass(slots=True)
class Balance:
    """A locked period while a group of jobs is decided upon; amounts in USD."""

    period_id: int
    budget_id: UUID
    scope: str
    subject: str | None
    window: str
    limit_usd: Decimal
    remaining_usd: Decimal
    resets_at: datetime | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """The first budget that a job does not fit, with what was left of it then."""

    balance: Balance
    left_usd: Decimal
    asked_usd: Decimal


@dataclass(slots=True)
class Choice:
    """Which jobs of a group are recorded, and why the others are not, by job id."""

    rows: list[dict[str, Any]] = field(default_factory=list)  # Any: as Job
    refused: dict[UUID, Refusal] = field(default_factory=dict)


def balances_by_payer(rows: Iterable[Mapping[Any, Any]]) -> dict[tuple[object, ...], list[Balance]]:
    """Rows of LOCK_BALANCES by who is covered; what is covered by the same period shares its Balance."""
    periods: dict[int, Balance] = {}
    found: dict[tuple[object, ...], list[Balance]] = {}
    for row in rows:
        balance = periods.setdefault(
            row["period_id"],
            Balance(
                period_id=row["period_id"],
                budget_id=row["budget_id"],
                scope=row["scope"],
                subject=row["subject"],
                window=row["window"],
                limit_usd=row["limit_usd"],
                remaining_usd=row["limit_usd"] - row["spent_usd"] - row["reserved_usd"],
                resets_at=row["resets_at"],
            ),
        )
        found.setdefault(_payer(row), []).append(balance)
    return found


def choose(
    jobs: Sequence[Job], recorded: Iterable[Mapping[Any, Any]], balances: Mapping[tuple[object, ...], list[Balance]]
) -> Choice:
    """Decide in the order of arrival: a job that fits every budget of its payer is let through.

    ``recorded``: rows of SELECT_RECORDED; a job that is recorded already, by its id or its idempotency key, is
    neither let through nor refused, and takes nothing.
    """
    choice = Choice()
    seen: set[object] = set()
    for row in recorded:
        seen |= {row["id"], (row["tenant_id"], row["idempotency_key"])}
    for job in jobs:
        key = (job["tenant_id"], job["idempotency_key"])
        if job["id"] in seen or (job["idempotency_key"] is not None and key in seen):
            continue
        asked: Decimal = job["reserved_usd"]
        covering = balances.get(_payer(job), [])
        short = next((balance for balance in covering if balance.remaining_usd < asked), None)
        if short is not None:
            choice.refused[job["id"]] = Refusal(short, short.remaining_usd, asked)
            continue
        for balance in covering:
            balance.remaining_usd -= asked
        seen.add(key)
        choice.rows.append({**job, "budget_periods": [balance.period_id for balance in covering]})
    return choice


def choose_top_ups(costs: Mapping[Any, Any], rows: Iterable[Mapping[Any, Any]]) -> dict[UUID, list[int]]:
    """The jobs whose cost (``costs``, by job id) fits all of their periods once more, with these periods.

    ``rows``: those of LOCK_PERIODS_OF_JOBS. Decided in order, each on top of those before it.
    """
    remaining: dict[int, Decimal] = {}
    periods: dict[UUID, list[int]] = {}
    for row in rows:
        remaining[row["period_id"]] = row["remaining_usd"]
        periods.setdefault(row["job_id"], []).append(row["period_id"])
    chosen: dict[UUID, list[int]] = {}
    for job_id, cost in costs.items():
        mine = periods.get(job_id, [])
        if all(remaining[period_id] >= cost for period_id in mine):
            chosen[job_id] = mine
            for period_id in mine:
                remaining[period_id] -= cost
    return chosen


def _payer(row: Mapping[Any, Any]) -> tuple[object, ...]:
    return (row["tenant_id"], row["team"], row["end_user"], row["api_key_id"])
