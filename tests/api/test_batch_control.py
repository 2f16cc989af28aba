"""What callers do to batches, with a feeder, a keeper and a worker moved by hand."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import create_engine, fetch_all
from models.feeding import FEED
from models.ids import BATCH, new_id, to_wire
from models.job import EXPIRE_JOBS
from models.wakeups import Wakeups
from tests.api.acting import Json, Tenant, Worker, code_of
from tests.batches import assert_rows_ended_once, batch, counts, new_batch
from tests.money import BALANCES
from tests.stack import Database
from workers.batchkeeper import BatchKeeper
from workers.feeder import Feeder
from workers.settings import RelaySettings

pytestmark = pytest.mark.anyio
EACH = Decimal("0.001")
COST = Decimal("0.000092")
WAY = {"model": "tiny", "route": ["tiny"], "tier": "small", "queue": "small", "routing": None}


class Mill:
    """One batch at a time, fed and run by hand."""

    def __init__(
        self, client: httpx.AsyncClient, database: Database, engine: AsyncEngine, worker: Worker, wakeups: Wakeups
    ) -> None:
        self.database = database
        self._client = client
        self._engine = engine
        self._worker = worker
        self._keeper = BatchKeeper(engine, engine, wakeups, writer=new_id())
        self._wakeups = wakeups
        self.id = UUID(int=0)

    def start(self, prompts: Sequence[str], **columns: Any) -> None:  # Any: see new_batch
        """Record a batch of the tenant's, reserved for in the budget there is."""
        each = columns.pop("reserved_usd", Decimal(0))
        periods = [row["id"] for row in self._periods()]
        self.id = new_batch(self.database, prompts, ways=[WAY], reserved_usd=each, budget_periods=periods, **columns)
        reserved = batch(self.database, self.id)["reserved_usd"]
        self.database.rows(
            "UPDATE budget_periods SET reserved_usd = reserved_usd + %s WHERE id = ANY(%s)", reserved, periods
        )

    def _periods(self) -> list[dict[str, Any]]:
        return self.database.rows(
            "SELECT p.id FROM budget_periods p JOIN budgets b ON b.id = p.budget_id WHERE b.tenant_id = %s",
            self.database.tenant_id,
        )

    async def feed(self, window: int = 8) -> int:
        """Feed once, with a buffer of this many; how many jobs were made of the batch."""
        settings = RelaySettings(
            database_url="postgres://", redis_url="redis://", window_min=window // 2, window_factor=1.0
        )
        jobs = "SELECT count(*) FROM jobs WHERE batch_id = %s"
        before = self.database.value(jobs, self.id)
        await Feeder(self._engine, settings).feed()  # other tests' batches too
        return int(self.database.value(jobs, self.id) - before)

    async def claim(self, most: int = 1000) -> list[Json]:
        """Claim what can be claimed of the batch."""
        rows = self.database.rows(
            "SELECT id FROM jobs WHERE batch_id = %s AND status = 'queued' AND next_attempt_at <= now()"
            " AND expires_at > now() ORDER BY id LIMIT %s",
            self.id,
            most,
        )
        return [await self._worker.claim({"id": f"job_{row['id'].hex}"}) for row in rows]

    async def end(self, claims: Sequence[Json], status: str = "completed", **columns: object) -> None:
        """End claimed jobs."""
        for claim in claims:
            await self._worker.finish(claim, status, **columns)

    async def run(self, status: str = "completed", window: int = 8) -> None:
        """Feed and end everything."""
        while await self.feed(window) + len(claims := await self.claim()):
            await self.end(claims, status)
        await self.look()

    async def look(self) -> None:
        """Let the keeper look once."""
        await self._keeper.look()

    async def get(self) -> Json:
        """The batch's resource."""
        resource: Json = (await self._client.get(f"/v1/batches/{to_wire(BATCH, self.id)}")).json()
        return resource

    async def post(self, action: str, client: httpx.AsyncClient | None = None, **params: str) -> httpx.Response:
        """Do something to the batch."""
        return await (client or self._client).post(f"/v1/batches/{to_wire(BATCH, self.id)}/{action}", params=params)

    def events(self) -> list[str]:
        """The types of the tenant's events, oldest first."""
        rows = self.database.rows(
            "SELECT type FROM events WHERE tenant_id = %s ORDER BY created_at, id", self.database.tenant_id
        )
        return [row["type"] for row in rows]

    def balance(self) -> tuple[object, object]:
        """What is spent and reserved in the tenant's budget."""
        (row,) = [row for row in self.database.rows(BALANCES) if row["id"] in {p["id"] for p in self._periods()}]
        return row["spent"], row["reserved"]


@pytest.fixture
async def mill(
    client: httpx.AsyncClient,
    tenant: Tenant,
    engine: AsyncEngine,
    worker: Worker,
    api_database_url: str,
    api_redis_url: str,
) -> AsyncIterator[Mill]:
    wakeups = Wakeups(api_redis_url)
    with Database(api_database_url) as database:
        database.__dict__["tenant_id"] = tenant.id
        # What other tests left would have its share of each feed.
        database.rows("UPDATE batches SET status = 'cancelled' WHERE status = 'in_progress'")
        mill = Mill(client, database, engine, worker, wakeups)
        yield mill
        database.rows("UPDATE batches SET status = 'cancelled' WHERE tenant_id = %s", tenant.id)
    await wakeups.close()


async def put_budget(client: httpx.AsyncClient, limit: Decimal) -> None:
    body = {"scope": "tenant", "window": "total", "limit_usd": str(limit)}
    assert (await client.put("/v1/budgets", json=body)).status_code == 200


def counted(resource: Json, *names: str) -> tuple[int, ...]:
    return tuple(resource["counts"][name] for name in names)


async def test_feeds_that_race_make_one_job_of_every_row(mill: Mill, api_database_url: str) -> None:
    mill.start([f"row {n}" for n in range(1, 201)])
    engine = create_engine(api_database_url, name="feeders", pool_size=8)

    async def feed(position: int) -> None:
        ids = [new_id() for _ in range(20)]
        at = {"id": mill.id, "next_row": position, "round": 0, "last_round": 0}
        await fetch_all(engine, FEED, {**at, "rows": 20, "span": 20, "ids": ids})

    for position in range(1, 201, 20):
        await asyncio.gather(*(feed(position) for _ in range(8)))
    await asyncio.gather(*(feed(position) for position in (1, 101, 181, 201)))
    await engine.dispose()
    rows = mill.database.rows("SELECT batch_row, count(*) FROM jobs WHERE batch_id = %s GROUP BY 1", mill.id)
    assert sorted((row["batch_row"], row["count"]) for row in rows) == [(n, 1) for n in range(1, 201)]


async def test_a_row_brings_a_request_and_a_route_of_its_own(mill: Mill) -> None:
    mill.start(["a", "b"])
    mill.database.rows(
        'UPDATE batch_rows SET cells = NULL, request = \'{"messages": [{"role": "user", "content": "own"}]}\','
        " route = 1 WHERE batch_id = %s AND number = 2",
        mill.id,
    )
    mill.database.rows(
        'UPDATE batches SET routes = routes || jsonb_build_array(routes -> 0 || \'{"model": "other"}\') WHERE id = %s',
        mill.id,
    )
    assert await mill.feed() == 2
    jobs = mill.database.rows("SELECT model, request FROM jobs WHERE batch_id = %s ORDER BY batch_row", mill.id)
    assert [job["model"] for job in jobs] == ["tiny", "other"]
    assert jobs[1]["request"] == {"max_tokens": 16, "messages": [{"role": "user", "content": "own"}]}


async def test_the_feeder_keeps_a_small_buffer_and_no_more_than_max_parallel(mill: Mill) -> None:
    mill.start([f"row {n}" for n in range(100)], max_parallel=5)
    assert [await mill.feed(), await mill.feed()] == [5, 0]
    await mill.end(await mill.claim(2))
    assert await mill.feed() == 2
    mill.database.rows("UPDATE batches SET max_parallel = NULL WHERE id = %s", mill.id)
    assert await mill.feed() == 0  # more than half of the buffer waits
    await mill.end(await mill.claim(1))
    assert await mill.feed() == 4
    assert mill.database.value("SELECT count(*) FROM jobs WHERE batch_id = %s", mill.id) == 11


async def test_a_paused_batch_starts_nothing_and_goes_on_where_it_was(mill: Mill, stranger: httpx.AsyncClient) -> None:
    mill.start([f"row {n}" for n in range(20)])
    await mill.feed()
    running = await mill.claim(3)
    mill.database.rows("UPDATE jobs SET dispatched_at = now() WHERE batch_id = %s", mill.id)
    assert code_of(await mill.post("pause", stranger)) == "not_found"
    for _ in range(2):
        paused = (await mill.post("pause")).json()
        assert (paused["status"], paused["pause_reason"]) == ("paused", "requested")
    assert await mill.feed() == 0
    assert await mill.claim() == []
    await mill.end(running)
    await mill.look()
    assert counted(await mill.get(), "queued", "in_progress", "completed") == (17, 0, 3)
    assert code_of(await mill.post("resume", stranger)) == "not_found"
    for _ in range(2):
        assert (await mill.post("resume")).json()["status"] == "in_progress"
    await mill.run()
    ended = await mill.get()
    assert (ended["status"], ended["progress"], ended["paused_at"]) == ("completed", 1.0, None)
    assert ended["request_counts"] == {"total": 20, "completed": 20, "failed": 0}
    assert_rows_ended_once(mill.database, mill.id)
    assert mill.events() == ["batch.paused", "batch.resumed", "batch.completed"]
    for action in ("pause", "resume", "cancel"):
        assert code_of(await mill.post(action)) == "batch_finished"
    assert code_of(await mill.post("retry")) == "batch_nothing_to_retry"


async def test_a_cancelled_batch_keeps_what_is_finished_stops_what_runs_and_gives_its_money_back(
    mill: Mill, client: httpx.AsyncClient, stranger: httpx.AsyncClient
) -> None:
    await put_budget(client, Decimal(1))
    mill.start([f"row {n}" for n in range(20)], reserved_usd=EACH)
    assert mill.balance() == (0, 20 * EACH)
    await mill.feed()
    claims = await mill.claim(5)
    await mill.end(claims[:2], cost_usd=str(COST))
    assert mill.balance() == (2 * COST, 18 * EACH)
    assert code_of(await mill.post("cancel", stranger)) == "not_found"
    for _ in range(2):
        cancelling = (await mill.post("cancel")).json()
        assert cancelling["status"] == "cancelling"
        assert counted(cancelling, "queued", "in_progress", "completed", "cancelled") == (12, 3, 2, 3)
    assert mill.balance() == (2 * COST, 3 * EACH)
    asked = (
        "SELECT count(*) FROM jobs WHERE batch_id = %s AND status = 'in_progress' AND cancel_requested_at IS NOT NULL"
    )
    assert mill.database.value(asked, mill.id) == 3
    for action in ("pause", "resume", "retry"):
        assert code_of(await mill.post(action)) == "batch_busy"
    await mill.look()
    assert (await mill.get())["status"] == "cancelling"
    await mill.end(claims[2:], "cancelled", cost_usd=str(COST))
    await mill.look()
    ended = await mill.get()
    assert ended["status"] == (await mill.post("cancel")).json()["status"] == "cancelled"
    assert counted(ended, "queued", "in_progress", "completed", "cancelled") == (0, 0, 2, 18)
    assert (ended["cost_usd"], ended["reserved_usd"]) == ("0.000460", "0.000000")
    assert ended["output_file_id"]
    assert ended["error_file_id"]
    assert mill.balance() == (5 * COST, 0)
    assert_rows_ended_once(mill.database, mill.id)
    assert mill.events() == ["batch.cancelled"]


async def test_only_failed_rows_run_again_and_reserve_as_a_whole(mill: Mill, client: httpx.AsyncClient) -> None:
    await put_budget(client, Decimal(1))
    mill.start([f"row {n}" for n in range(10)], reserved_usd=EACH)
    await mill.feed(16)
    claims = await mill.claim()
    await mill.end(claims[:6])
    await mill.end(claims[6:], "failed")
    await mill.look()
    first = await mill.get()
    assert (first["status"], counted(first, "completed", "failed")) == ("completed", (6, 4))
    spent = Decimal(str(mill.balance()[0]))
    await put_budget(client, spent + 4 * EACH - Decimal("0.000001"))
    assert code_of(await mill.post("retry")) == "budget_exceeded"
    assert (await mill.get())["status"] == "completed"
    await put_budget(client, spent + 4 * EACH)
    assert code_of(await mill.post("retry", status="cancelled")) == "batch_nothing_to_retry"
    assert code_of(await mill.post("retry", status="finished")) == "validation_failed"
    again = (await mill.post("retry", status="failed")).json()
    assert (again["status"], again["completed_at"], again["reserved_usd"]) == ("in_progress", None, "0.004000")
    assert again["expires_at"] >= first["expires_at"]
    assert counted(again, "queued", "completed", "failed") == (4, 6, 0)
    assert mill.balance() == (spent, 4 * EACH)
    await mill.run()
    ended = await mill.get()
    assert (ended["status"], counted(ended, "completed", "failed")) == ("completed", (10, 0))
    assert_rows_ended_once(mill.database, mill.id)
    assert mill.database.value("SELECT count(*) FROM jobs WHERE batch_id = %s", mill.id) == 14
    assert mill.balance()[1] == 0
    assert mill.events().count("batch.completed") == 2


async def test_rows_that_never_ran_are_retried_too_whatever_was_retried_before(mill: Mill) -> None:
    mill.start([f"row {n}" for n in range(12)])
    await mill.feed()
    claims = await mill.claim(4)
    await mill.end(claims[:2])
    await mill.end(claims[2:], "failed")
    await mill.post("cancel")
    await mill.look()
    assert counted(await mill.get(), "completed", "failed", "cancelled") == (2, 2, 8)

    failed = (await mill.post("retry", status="failed")).json()
    assert counted(failed, "queued", "completed", "failed", "cancelled") == (2, 2, 0, 8)
    await mill.run()
    assert (await mill.get())["status"] == "completed"
    assert counted(await mill.get(), "completed", "failed", "cancelled") == (4, 0, 8)

    assert counted((await mill.post("retry")).json(), "queued", "cancelled") == (8, 0)
    await mill.feed()
    await mill.end(await mill.claim(1))
    await mill.post("cancel")
    await mill.look()
    assert counted(await mill.get(), "completed", "cancelled") == (5, 7)

    assert counted((await mill.post("retry", status="cancelled,expired")).json(), "queued", "cancelled") == (7, 0)
    await mill.run()
    assert counted(await mill.get(), "completed", "queued") == (12, 0)
    assert_rows_ended_once(mill.database, mill.id)
    done = "SELECT count(*) FROM jobs WHERE batch_id = %s AND status = 'completed'"
    assert mill.database.value(done, mill.id) == 12


async def test_at_the_deadline_what_is_finished_stays_and_the_rest_is_expired(
    mill: Mill, client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await put_budget(client, Decimal(1))
    mill.start([f"row {n}" for n in range(20)], reserved_usd=EACH)
    await mill.feed()
    await mill.end(await mill.claim(2))
    running = await mill.claim(1)
    for table, key in (("batches", "id"), ("jobs", "batch_id")):
        late = text(f"UPDATE {table} SET expires_at = now() WHERE {key} = :id AND {key} IS NOT NULL")
        await fetch_all(engine, late, {"id": mill.id})
    await mill.look()
    assert (await mill.get())["status"] == "finalizing"
    assert mill.balance()[1] == 6 * EACH
    await fetch_all(engine, EXPIRE_JOBS, {"limit": 100, "grace_s": 60, "error": "{}", "writer": new_id()})
    await mill.look()
    assert (await mill.get())["status"] == "finalizing"
    await mill.end(running, "expired")
    await mill.look()
    ended = await mill.get()
    assert (ended["status"], counted(ended, "completed", "expired")) == ("expired", (2, 18))
    assert mill.balance()[1] == 0
    assert_rows_ended_once(mill.database, mill.id)
    assert (await mill.post("retry")).json()["counts"]["queued"] == 18
    assert mill.balance()[1] == 18 * EACH


async def test_a_batch_waits_for_its_budget_and_goes_on_when_it_is_raised(
    mill: Mill, client: httpx.AsyncClient
) -> None:
    await put_budget(client, 10 * EACH)
    mill.start([f"row {n}" for n in range(10)], reserved_usd=EACH)
    await mill.feed()
    await mill.end(await mill.claim(2), cost_usd=str(EACH))
    await put_budget(client, 9 * EACH)
    await mill.look()
    paused = await mill.get()
    assert (paused["status"], paused["pause_reason"]) == ("paused", "budget_exhausted")
    assert await mill.feed() == 0
    await mill.look()
    assert (await mill.get())["status"] == "paused"
    await put_budget(client, 10 * EACH)
    await mill.look()
    assert (await mill.get())["status"] == "in_progress"
    assert mill.events()[-2:] == ["batch.paused", "batch.resumed"]

    await mill.run()
    assert (await mill.get())["status"] == "completed"


async def test_rows_that_ended_for_want_of_money_run_again_when_there_is_some(
    mill: Mill, client: httpx.AsyncClient
) -> None:
    no_money = {"code": "budget_exceeded", "message": "", "retryable": False}
    await put_budget(client, 4 * EACH)
    mill.start([f"row {n}" for n in range(4)], reserved_usd=EACH)
    await mill.feed()
    claims = await mill.claim()
    await mill.end(claims[:2], cost_usd=str(EACH))
    await mill.end(claims[2:], "failed", cost_usd=str(EACH), job_error=no_money)
    for _ in range(3):
        await mill.look()
        paused = await mill.get()
        assert (paused["status"], paused["pause_reason"]) == ("paused", "budget_exhausted")
        assert counted(paused, "completed", "failed") == (2, 2)
    assert code_of(await mill.post("resume")) == "budget_exceeded"
    await put_budget(client, 7 * EACH)
    await mill.look()
    assert (await mill.get())["status"] == "paused"  # one more failure of each would leave nothing
    await put_budget(client, 8 * EACH)
    await mill.look()
    resumed = await mill.get()
    assert (resumed["status"], counted(resumed, "queued", "failed")) == ("in_progress", (2, 0))
    assert mill.balance() == (4 * EACH, 2 * EACH)
    await mill.run()
    assert counted(await mill.get(), "completed", "failed") == (4, 0)
    assert counts(mill.database, mill.id)["unpaid"] == 0
    assert mill.balance()[1] == 0
    assert_rows_ended_once(mill.database, mill.id)


async def test_rows_that_share_an_answer_are_run_and_charged_once(mill: Mill) -> None:
    mill.start(["a", "b", "a", "a", "c", "b"], same_as={3: 1, 4: 1, 6: 2})
    await mill.feed()
    claims = await mill.claim()
    assert len(claims) == 3
    assert counted(await mill.get(), "in_progress", "queued") == (6, 0)
    await mill.end(claims[:1], cost_usd=str(COST))
    await mill.end(claims[1:], "failed", cost_usd=str(COST))
    await mill.look()
    ended = await mill.get()
    assert (ended["status"], counted(ended, "completed", "failed")) == ("completed", (3, 3))
    assert ended["cost_usd"] == "0.000276"
    assert counted((await mill.post("retry")).json(), "completed", "failed", "queued") == (3, 0, 3)
    await mill.run()
    assert counted(await mill.get(), "completed") == (6,)
    assert_rows_ended_once(mill.database, mill.id)


async def test_thousands_of_rows_that_share_an_answer_do_not_hold_the_others_up(mill: Mill) -> None:
    mill.start(["a"] * 12_000 + ["b"], same_as=dict.fromkeys(range(2, 12_001), 1))
    assert await mill.feed() == 2
    await mill.run()
    assert counted(await mill.get(), "completed") == (12_001,)


async def test_a_row_cancelled_by_itself_is_counted(mill: Mill, client: httpx.AsyncClient) -> None:
    mill.start(["a", "b", "c"])
    await mill.feed()
    listed = (await client.get("/v1/jobs", params={"batch_id": to_wire(BATCH, mill.id)})).json()["data"]
    assert [job["batch_id"] for job in listed] == [to_wire(BATCH, mill.id)] * 3
    assert (await client.post(f"/v1/jobs/{listed[0]['id']}/cancel")).json()["status"] == "cancelled"
    await mill.run()
    assert counted(await mill.get(), "completed", "cancelled") == (2, 1)
    assert_rows_ended_once(mill.database, mill.id)


async def test_batches_are_listed_by_pages_and_only_to_their_tenant(
    mill: Mill, client: httpx.AsyncClient, stranger: httpx.AsyncClient
) -> None:
    ids: list[str] = []
    for _ in range(3):
        mill.start(["a", "b"])
        ids.insert(0, to_wire(BATCH, mill.id))
    page = (await client.get("/v1/batches", params={"limit": 2})).json()
    assert ([batch["id"] for batch in page["data"]], page["has_more"]) == (ids[:2], True)
    rest = (await client.get("/v1/batches", params={"limit": 2, "after": page["last_id"]})).json()
    assert ([batch["id"] for batch in rest["data"]], rest["has_more"]) == (ids[2:], False)
    assert (await stranger.get("/v1/batches")).json()["data"] == []
    assert code_of(await stranger.get(f"/v1/batches/{ids[0]}")) == "not_found"
    assert code_of(await client.get("/v1/batches/batch_nonsense")) == "not_found"
    assert code_of(await client.get("/v1/batches", params={"after": "nonsense"})) == "validation_failed"
    assert (await stranger.get("/v1/jobs", params={"batch_id": ids[0]})).json()["data"] == []
