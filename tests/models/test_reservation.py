"""Who is let through when money is short: decided in order, exactly, over every budget that covers a job."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from models.ids import new_id
from models.reservation import balances_by_payer, choose, choose_top_ups

TENANT = new_id()
amounts = st.decimals(min_value=0, max_value=10, places=6)


def job(amount: Decimal, team: str | None = None, key: str | None = None) -> dict[str, Any]:
    """A planned job, as far as reservations see it."""
    return {
        "id": new_id(),
        "tenant_id": TENANT,
        "team": team,
        "end_user": None,
        "api_key_id": None,
        "reserved_usd": amount,
        "idempotency_key": key,
    }


def balance(period_id: int, remaining: Decimal, team: str | None, subject: str | None = None) -> dict[str, Any]:
    """A row of LOCK_BALANCES: a budget that covers the jobs of a team."""
    return {
        "tenant_id": TENANT,
        "team": team,
        "end_user": None,
        "api_key_id": None,
        "period_id": period_id,
        "budget_id": UUID(int=period_id),
        "scope": "team" if subject else "tenant",
        "subject": subject,
        "window": "day",
        "limit_usd": remaining,
        "spent_usd": Decimal(0),
        "reserved_usd": Decimal(0),
        "resets_at": datetime(2026, 11, 22, tzinfo=UTC),
    }


@given(st.lists(st.tuples(amounts, st.sampled_from(["a", "b"])), max_size=30), amounts, amounts)
def test_no_budget_is_exceeded_and_nobody_who_fits_is_refused(
    asked: list[tuple[Decimal, str]], whole: Decimal, part: Decimal
) -> None:
    jobs = [job(amount, team) for amount, team in asked]
    rows = [balance(1, whole, "a"), balance(1, whole, "b"), balance(2, part, "a", "a")]
    choice = choose(jobs, [], balances_by_payer(rows))
    left = {1: whole, 2: part}
    let_through = {row["id"]: row["budget_periods"] for row in choice.rows}
    for each in jobs:
        mine = [1, 2] if each["team"] == "a" else [1]
        fits = all(left[period] >= each["reserved_usd"] for period in mine)
        assert (each["id"] in let_through) == fits
        assert (each["id"] in choice.refused) == (not fits)
        if fits:
            assert sorted(let_through[each["id"]]) == mine
            for period in mine:
                left[period] -= each["reserved_usd"]
    assert min(left.values()) >= 0


def test_a_refusal_names_the_first_budget_that_is_short_and_what_was_left_of_it_then() -> None:
    rows = [balance(1, Decimal(5), "a"), balance(2, Decimal(1), "a", "a")]
    first, second = job(Decimal("0.75"), "a"), job(Decimal("0.75"), "a")
    choice = choose([first, second], [], balances_by_payer(rows))
    refusal = choice.refused[second["id"]]
    assert (refusal.balance.period_id, refusal.left_usd, refusal.asked_usd) == (2, Decimal("0.25"), Decimal("0.75"))


def test_a_job_that_is_recorded_already_takes_nothing_and_is_not_refused() -> None:
    by_key, by_id, new = job(Decimal(1), "a", "k"), job(Decimal(1), "a"), job(Decimal(1), "a")
    recorded = [
        {"id": new_id(), "tenant_id": TENANT, "idempotency_key": "k"},
        {"id": by_id["id"], "tenant_id": TENANT, "idempotency_key": None},
    ]
    choice = choose([by_key, by_id, new], recorded, balances_by_payer([balance(1, Decimal(1), "a")]))
    assert [row["id"] for row in choice.rows] == [new["id"]]
    assert choice.refused == {}


def test_of_two_jobs_with_one_key_the_first_reserves() -> None:
    jobs = [
        job(Decimal(1), "a", "k"),
        job(Decimal(1), "a", "k"),
        job(Decimal(1), "a", None),
        job(Decimal(1), "a", None),
    ]
    choice = choose(jobs, [], balances_by_payer([balance(1, Decimal(3), "a")]))
    assert [row["id"] for row in choice.rows] == [jobs[0]["id"], jobs[2]["id"], jobs[3]["id"]]


def test_top_ups_are_let_through_one_on_top_of_another() -> None:
    jobs = [new_id() for _ in range(4)]
    rows = [{"job_id": job_id, "period_id": 1, "remaining_usd": Decimal(2)} for job_id in jobs[:3]]
    rows.append({"job_id": jobs[0], "period_id": 2, "remaining_usd": Decimal("0.5")})
    chosen = choose_top_ups(dict.fromkeys(jobs, Decimal(1)), rows)
    assert chosen == {jobs[1]: [1], jobs[2]: [1], jobs[3]: []}  # the last one's budgets are gone
