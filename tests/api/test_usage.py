"""Usage over HTTP: grouped sums of the ledger, as JSON and as CSV."""

import csv
import io
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from api.routes.usage import as_csv
from tests.api.acting import Tenant, Worker, code_of, submit

pytestmark = pytest.mark.anyio


@pytest.fixture
async def used(client: httpx.AsyncClient, worker: Worker) -> None:
    """Two jobs of a team, one of them retried, and one of a user."""
    for fields in ({"team": "search"}, {"team": "search"}, {"user": "=1+1"}):
        job = await submit(client, model="alone", fallbacks=[], **fields)
        if fields == {"team": "search"}:
            await worker.finish(await worker.claim(job), "queued", llm="alone")
        await worker.complete(job)


@pytest.mark.usefixtures("used")
async def test_usage_is_summed_by_any_groups(client: httpx.AsyncClient, tenant: Tenant) -> None:
    whole = (await client.get("/v1/usage")).json()
    total = {"jobs": 3, "attempts": 5, "input_tokens": 60, "output_tokens": 200, "cost_usd": "0.000460"}
    assert whole == {"object": "list", "data": [total]}
    by_team = (await client.get("/v1/usage", params={"group_by": "team"})).json()["data"]
    assert [(row["team"], row["jobs"], row["attempts"]) for row in by_team] == [("search", 2, 4), (None, 1, 1)]
    by_all = (await client.get("/v1/usage", params={"group_by": "day, key,model,user"})).json()["data"]
    today, lookup = datetime.now(UTC).strftime("%Y-%m-%d"), tenant.key.split("_")[1]
    assert [list(row.values())[:6] for row in by_all] == [
        [today, lookup, "alone", None, 2, 2],
        [today, lookup, "tiny", "=1+1", 1, 1],
        [today, lookup, "tiny", None, 2, 2],
    ]


@pytest.mark.usefixtures("used")
async def test_usage_is_of_a_time_and_of_ones_own(client: httpx.AsyncClient, stranger: httpx.AsyncClient) -> None:
    now = datetime.now(UTC)
    for params, attempts in (
        ({"from": now.strftime("%Y-%m-%d")}, 5),
        ({"to": now.strftime("%Y-%m-%d")}, 0),
        ({"from": (now - timedelta(hours=1)).isoformat(), "to": (now + timedelta(hours=1)).isoformat()}, 5),
        ({"from": (now + timedelta(hours=1)).isoformat()}, 0),
    ):
        rows = (await client.get("/v1/usage", params=params)).json()["data"]
        assert [row["attempts"] for row in rows] == [attempts], params
    assert (await stranger.get("/v1/usage", params={"group_by": "day"})).json()["data"] == []


@pytest.mark.usefixtures("used")
async def test_usage_as_csv_cannot_run_formulas(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/usage", params={"group_by": "user", "format": "csv"})
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert list(csv.reader(io.StringIO(response.text))) == [
        ["user", "jobs", "attempts", "input_tokens", "output_tokens", "cost_usd"],
        ["'=1+1", "1", "1", "12", "40", "0.000092"],
        ["", "2", "4", "48", "160", "0.000368"],
    ]


async def test_an_attempt_shows_cached_reasoning_and_estimated_tokens(
    client: httpx.AsyncClient, worker: Worker
) -> None:
    job = await submit(client)
    claimed = await worker.claim(job)
    await worker.finish(claimed, cached_input_tokens=8, reasoning_tokens=30, usage_estimated=True)
    (attempt,) = (await client.get(job["status_url"])).json()["attempts"]
    assert attempt["usage"] == {
        "input_tokens": 12,
        "output_tokens": 40,
        "total_tokens": 52,
        "input_tokens_details": {"cached_tokens": 8},
        "output_tokens_details": {"reasoning_tokens": 30},
        "estimated": True,
    }


@pytest.mark.parametrize("begins", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
def test_a_cell_that_a_spreadsheet_would_execute_becomes_text(begins: str) -> None:
    rows = csv.reader(io.StringIO(as_csv(["a", "b"], [{"a": f"{begins}A1", "b": -1}]), newline=""))
    assert list(rows)[1] == [f"'{begins}A1", "-1"]


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"group_by": "model,colour"}, "group_by"),
        ({"group_by": 'model"; DROP'}, "group_by"),
        ({"from": "yesterday"}, "from"),
        ({"to": "0001-01-01"}, "to"),
        ({"format": "xml"}, "format"),
    ],
)
async def test_wrong_parameters_are_refused(client: httpx.AsyncClient, params: dict[str, str], field: str) -> None:
    response = await client.get("/v1/usage", params=params)
    assert code_of(response) == "validation_failed"
    assert [problem["field"] for problem in response.json()["errors"]] == [field]
