"""A report lands whatever is in it and whatever Postgres says to it, and holds nobody else's."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest

from api.local.valkey import EmbeddedValkey
from models.catalog import load_catalog
from models.database import create_engine, fetch_all
from models.errors import FailureCode, JobFailure
from models.lifecycle import AttemptOutcome, JobStatus
from models.pricing import Price, Usage
from models.process import REGISTER
from models.storable import MAX_INT
from models.wakeups import Wakeups
from tests.stack import Database, Stack, wait_until
from workers import exchange as exchange_module
from workers.exchange import Exchange
from workers.execution import Claim, Ending, Report
from workers.lease import Lease

PRICE = Price(Decimal(1), Decimal(2))
USAGE = Usage(1000, 500)
COST = Decimal("0.002")
REFUSE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'refused for a test' USING ERRCODE = '{sqlstate}', DETAIL = 'a secret prompt'; END $$
"""
REFUSE_ONE = """
    CREATE TRIGGER refuse BEFORE UPDATE ON jobs FOR EACH ROW WHEN (OLD.id = '{job_id}' AND {condition})
    EXECUTE FUNCTION refuse()
"""


def refuse(database: Database, job_id: UUID, sqlstate: str, condition: str = "OLD.status = 'in_progress'") -> None:
    """Let Postgres refuse what changes a job that meets a condition."""
    database.rows(REFUSE.format(sqlstate=sqlstate))
    database.rows(REFUSE_ONE.format(job_id=job_id, condition=condition))


def with_exchange(
    database: Database, stack: Stack, valkey: EmbeddedValkey, act: Callable[[Exchange], Awaitable[None]]
) -> None:
    """Run ``act`` with the exchange of a registered worker."""
    assert database.api_key  # made on a loop of its own

    async def run() -> None:
        engine = create_engine(database.url, name="test", pool_size=4)
        wakeups = Wakeups(valkey.url)
        stack.catalog({"echo": {}})
        lease = Lease(engine, role="worker", name="test", queues=["mock"], capacity=1, lease_s=600)
        identity = {"role": "worker", "name": "test", "queues": ["mock"], "capacity": 1, "lease_s": 600}
        await fetch_all(engine, REGISTER, {"id": lease.id, **identity})
        exchange = Exchange(engine, wakeups, load_catalog(Path(stack.settings["HEADRACE_CATALOG"])), lease)
        await act(exchange)
        exchange.close()
        await asyncio.sleep(0)
        await wakeups.close()
        await engine.dispose()

    asyncio.run(run())


async def claimed(exchange: Exchange, job_ids: Sequence[UUID]) -> list[Claim]:
    claims = await asyncio.gather(*(exchange.claim(job_id, is_row=False) for job_id in job_ids))
    assert all(isinstance(claim, Claim) for claim in claims)
    return [claim for claim in claims if isinstance(claim, Claim)]


def answered(
    claim: Claim, text: str = "answer", usage: Usage = USAGE, more: Mapping[str, object] | None = None
) -> Report:
    ending = Ending(AttemptOutcome.COMPLETED, JobStatus.COMPLETED, result={"text": text, **(more or {})})
    return Report(claim, ending, usage, PRICE, 10, 5)


def another_tenant(database: Database) -> UUID:
    return UUID(str(database.value("INSERT INTO tenants (id, name) VALUES (gen_random_uuid(), 'b') RETURNING id")))


def test_what_postgres_cannot_store_is_cleaned_on_every_path(
    database: Database, stack: Stack, valkey: EmbeddedValkey
) -> None:
    async def act(exchange: Exchange) -> None:
        first, second, third = await claimed(exchange, database.submit(["a", "b", "c"]))
        failure = JobFailure(FailureCode.PROVIDER_REJECTED, "$.a\0b\ud800: 1 is not of type string")
        failed = Ending(AttemptOutcome.FAILED, JobStatus.FAILED, failure=failure)
        await asyncio.gather(
            exchange.report(answered(first, "nul \0 and \udfff")),
            exchange.report(Report(second, failed, USAGE, PRICE, 10, None)),
            exchange.report(answered(third, more={"embeddings": [[0.5, 2**70]], "k\0": 1})),
        )
        assert database.rows("SELECT status FROM jobs ORDER BY id") == [
            {"status": status} for status in ("completed", "failed", "completed")
        ]
        assert database.value("SELECT result ->> 'text' FROM jobs WHERE id = %s", first.job_id) == "nul  and \ufffd"
        assert database.value("SELECT error ->> 'message' FROM jobs WHERE id = %s", second.job_id).startswith("$.ab")
        assert database.value("SELECT sum(cost_usd) FROM ledger_entries") == 3 * COST

    with_exchange(database, stack, valkey, act)


def test_counts_and_their_sums_may_be_as_large_as_a_provider_says(
    database: Database, stack: Stack, valkey: EmbeddedValkey
) -> None:
    huge = Usage(2**31 - 1 + 2**31 - 1, 2**31 - 1, cached_input_tokens=2**40)

    async def act(exchange: Exchange) -> None:
        (job_id,) = database.submit(["a"])
        for _ in range(2):
            database.rows("UPDATE jobs SET next_attempt_at = now()")
            (claim,) = await claimed(exchange, [job_id])
            retry = Ending(AttemptOutcome.FAILED, JobStatus.QUEUED, failure=JobFailure(FailureCode.TIMEOUT, "no"))
            await exchange.report(Report(claim, retry, huge, PRICE, 2**40, 2**40))
        (claim,) = await claimed(exchange, [job_id])
        await exchange.report(answered(claim, usage=huge))
        job = database.one("SELECT status, input_tokens, output_tokens, cost_usd FROM jobs")
        assert (job["status"], job["input_tokens"], job["output_tokens"]) == ("completed", MAX_INT, MAX_INT)
        assert job["cost_usd"] == database.value("SELECT sum(cost_usd) FROM ledger_entries") > 0
        assert database.value("SELECT sum(input_tokens) FROM ledger_entries") == 3 * MAX_INT

    with_exchange(database, stack, valkey, act)


def test_a_refused_report_is_booked_and_ends_its_job_in_a_minimal_form(
    database: Database, stack: Stack, valkey: EmbeddedValkey, capfd: pytest.CaptureFixture[str]
) -> None:
    async def act(exchange: Exchange) -> None:
        bad, good = await claimed(exchange, database.submit(["a", "b"]))
        refuse(database, bad.job_id, "22P05", "NEW.result IS NOT NULL")
        await asyncio.gather(exchange.report(answered(bad)), exchange.report(answered(good)))
        assert database.count("completed") == 1
        job = database.one("SELECT status, result, error, cost_usd FROM jobs WHERE id = %s", bad.job_id)
        assert (job["status"], job["result"], job["error"]["code"]) == ("failed", None, "internal")
        assert job["cost_usd"] == COST
        assert database.value("SELECT count(*) FROM ledger_entries") == 2
        assert exchange.unreported == {}

    with_exchange(database, stack, valkey, act)
    logged = "".join(capfd.readouterr())
    assert "refused for a test" in logged
    assert "secret" not in logged


def test_a_job_whose_report_is_refused_in_every_form_is_held_until_it_lands(
    database: Database, stack: Stack, valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_module, "_REFUSED_RETRY_S", 0.1)

    async def act(exchange: Exchange) -> None:
        (claim,) = await claimed(exchange, database.submit(["a"]))
        refuse(database, claim.job_id, "54011")
        await exchange.report(answered(claim))
        assert set(exchange.unreported) == {claim.attempt_id}
        assert database.one("SELECT status, attempt_count FROM jobs") == {"status": "in_progress", "attempt_count": 1}
        database.rows("DROP TRIGGER refuse ON jobs")
        await asyncio.wait(set(exchange.unreported.values()))
        assert database.one("SELECT status, cost_usd FROM jobs") == {"status": "failed", "cost_usd": COST}

    with_exchange(database, stack, valkey, act)


@pytest.mark.parametrize("sqlstate", ["54011", "57014", "40P01", "53400"])
def test_a_report_that_fails_for_ever_holds_no_report_of_another_tenant(
    database: Database, stack: Stack, valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, sqlstate: str
) -> None:
    monkeypatch.setattr(exchange_module, "_REFUSED_RETRY_S", 0.1)

    async def act(exchange: Exchange) -> None:
        other = another_tenant(database)
        bad = await claimed(exchange, database.submit(["bad"]))
        honest = await claimed(exchange, database.submit([f"{n}" for n in range(30)], tenant_id=other))
        refuse(database, bad[0].job_id, sqlstate)
        reports = [asyncio.create_task(exchange.report(answered(claim))) for claim in (*bad, *honest)]
        await asyncio.wait_for(asyncio.gather(*reports[1:]), 60)
        assert database.count("completed") == 30
        assert database.count("in_progress") == 1
        database.rows("DROP TRIGGER refuse ON jobs")
        await asyncio.wait_for(reports[0], 60)
        if exchange.unreported:
            await asyncio.wait(set(exchange.unreported.values()))
        assert database.count("in_progress") == 0
        assert database.value("SELECT sum(cost_usd) FROM ledger_entries") == 31 * COST

    with_exchange(database, stack, valkey, act)


def test_one_job_that_cannot_be_released_or_put_off_holds_no_other(
    database: Database, stack: Stack, valkey: EmbeddedValkey
) -> None:
    async def act(exchange: Exchange) -> None:
        claims = await claimed(exchange, database.submit([f"{n}" for n in range(9)]))
        refuse(database, claims[0].job_id, "54011")
        await exchange.release([claim.attempt_id for claim in claims[:5]])
        off = Ending(AttemptOutcome.RELEASED, JobStatus.QUEUED, retry_in_s=60, goes_to=0, not_made=True)
        waiting = [Report(claim, off, Usage(), PRICE, 0, None) for claim in (claims[0], *claims[5:])]
        await asyncio.gather(*map(exchange.report, waiting))
        assert database.count("queued") == 8
        assert database.count("in_progress") == 1

    with_exchange(database, stack, valkey, act)


def test_one_job_that_cannot_be_claimed_holds_no_other(
    database: Database, stack: Stack, valkey: EmbeddedValkey
) -> None:
    async def act(exchange: Exchange) -> None:
        job_ids = database.submit([f"{n}" for n in range(5)])
        refuse(database, job_ids[2], "54011", "OLD.status = 'queued'")
        claims = await asyncio.gather(
            *(exchange.claim(job_id, is_row=False) for job_id in job_ids), return_exceptions=True
        )
        assert [isinstance(claim, Claim) for claim in claims] == [True, True, False, True, True]

    with_exchange(database, stack, valkey, act)


def test_a_nul_in_what_is_wrong_with_an_answer_ends_the_job_once_and_booked(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {"mock": {"output": '{"a\\u0000b": 1}', "input_tokens": 1000}}})
    stack.relay()
    stack.worker()
    schema = {"type": "object", "additionalProperties": {"type": "string"}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    request = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 16, "response_format": form}
    database.submit(["x"], request=request)
    database.wait_until_finished()
    job = database.one("SELECT status, error, attempt_count, cost_usd FROM jobs")
    assert (job["status"], job["error"]["code"], job["attempt_count"]) == ("failed", "provider_rejected", 1)
    assert "$.ab" in job["error"]["message"]
    assert job["cost_usd"] == database.value("SELECT sum(cost_usd) FROM ledger_entries") > 0


def test_a_job_whose_llm_left_the_catalogue_fails_clearly_or_moves_to_its_fallback(
    stack: Stack, database: Database
) -> None:
    stack.catalog({"echo": {}})
    database.submit(["alone"], route=["gone"])
    database.submit(["fallback"], route=["gone", "echo"])
    stack.relay()
    stack.worker()
    database.wait_until_finished()
    alone, fallback = database.rows("SELECT status, error, attempt_count, tier FROM jobs ORDER BY id")
    assert (alone["status"], alone["error"]["code"], alone["attempt_count"]) == ("failed", "internal", 1)
    assert "gone" in alone["error"]["message"]
    assert (fallback["status"], fallback["attempt_count"], fallback["tier"]) == ("completed", 2, "mock")


def test_one_job_whose_reports_are_refused_does_not_hold_those_of_another_tenant(
    stack: Stack, database: Database
) -> None:
    stack.catalog({"echo": {"mock": {"latency_s": 0.3}}})
    (bad,) = database.submit(["bad"])
    refuse(database, bad, "54011", "OLD.status = 'in_progress' AND NEW.status <> 'in_progress'")
    database.submit([f"{n}" for n in range(30)], tenant_id=another_tenant(database))
    stack.relay()
    stack.worker()
    wait_until(lambda: database.count("completed") == 30)
    assert database.one("SELECT status, attempt_count FROM jobs WHERE id = %s", bad) == {
        "status": "in_progress",
        "attempt_count": 1,
    }
