"""``POST /v1/batches/upload``: what is recorded, what a dry run says, and what is refused without a trace."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.batches.clerks import Clerk
from api.settings import ApiSettings
from models.database import fetch_all
from models.ids import BATCH, from_wire
from tests.api.acting import Json, Tenant, Worker, code_of
from tests.api.batches.sheets import packed, sheet, workbook

pytestmark = pytest.mark.anyio

CSV = 'id,text,note\n1,hello,=cmd()\n2,wörld,\n3,"two\nlines",x\n'.encode()


@pytest.fixture
def settings(settings: ApiSettings) -> ApiSettings:
    """As of every test, with small limits for uploads."""
    return settings.model_copy(update={"max_upload_mb": 8, "max_batch_rows": 10})


async def send(client: httpx.AsyncClient, data: bytes = CSV, name: str = "rows.csv", **fields: str) -> httpx.Response:
    form = {"prompt": "Say {{text}}"} | fields
    return await client.post("/v1/batches/upload", files={"file": (name, data)}, data=form)


async def stored(engine: AsyncEngine, tenant: Tenant, table: str = "batches") -> list[Mapping[Any, Any]]:
    """A tenant's batches, or their rows."""
    which = {"batches": "tenant_id = :id", "batch_rows": "batch_id IN (SELECT id FROM batches WHERE tenant_id = :id)"}
    query = text(f"SELECT * FROM {table} WHERE {which[table]} ORDER BY 1, 2")
    return list(await fetch_all(engine, query, {"id": tenant.id}))


def problems_of(response: httpx.Response) -> list[tuple[int | None, str, str]]:
    assert code_of(response) == "validation_failed"
    return [(entry.get("line"), entry["field"], entry["message"]) for entry in response.json()["errors"]]


async def test_a_csv_becomes_a_batch_with_its_rows_as_they_were(
    client: httpx.AsyncClient, engine: AsyncEngine, tenant: Tenant
) -> None:
    response = await send(
        client,
        model="large",
        max_tokens="20",
        temperature="0.5",
        stop='["a", "b"]',
        seed="7",
        system="Be brief.",
        id_column="id",
        completion_window="1h",
        priority="low",
        max_parallel="3",
        name="My rows",
        user="ann",
        team="blue",
        metadata='{"order": "42"}',
    )
    batch = response.json()
    assert response.status_code == 202, batch
    assert response.headers["location"] == f"/v1/batches/{batch['id']}"
    assert (batch["status"], batch["counts"]["total"], batch["name"]) == ("in_progress", 3, "My rows")
    assert (batch["priority"], batch["max_parallel"], batch["user"], batch["team"]) == ("low", 3, "ann", "blue")
    assert batch["metadata"] == {"order": "42"}
    assert batch["expires_at"] - batch["created_at"] == 3600
    assert batch == (await client.get(response.headers["location"])).json()
    (row,) = await stored(engine, tenant)
    assert row["id"] == from_wire(BATCH, batch["id"])
    assert row["columns"] == ["id", "text", "note"]
    assert row["request"] == {
        "max_tokens": 20,
        "temperature": 0.5,
        "stop": ["a", "b"],
        "seed": 7,
        "messages": [{"role": "system", "content": "Be brief."}],
    }
    assert row["template"] == [{"text": "Say "}, {"column": 1}]
    assert row["dialect"] == {"separator": ",", "line_end": "\n", "mark": False, "encoding": "utf-8"}
    rows = await stored(engine, tenant, "batch_rows")
    assert [(r["number"], r["line"], r["custom_id"], r["cells"]) for r in rows] == [
        (1, 2, "1", ["1", "hello", "=cmd()"]),
        (2, 3, "2", ["2", "wörld", ""]),
        (3, 4, "3", ["3", "two\nlines", "x"]),
    ]
    assert sum(r["reserved_usd"] for r in rows) == row["reserved_usd"] > 0


async def test_an_upload_sent_again_with_its_key_is_the_same_batch(
    client: httpx.AsyncClient, engine: AsyncEngine, tenant: Tenant
) -> None:
    async def keyed(key: str, data: bytes = CSV, **fields: str) -> httpx.Response:
        form = {"prompt": "Say {{text}}"} | fields
        headers = {"idempotency-key": key}
        return await client.post("/v1/batches/upload", files={"file": ("a.csv", data)}, data=form, headers=headers)

    budget = {"scope": "tenant", "window": "total", "limit_usd": "1"}
    (await client.put("/v1/budgets", json=budget)).raise_for_status()
    assert (await keyed("k", dry_run="true")).json()["object"] == "batch.estimate"
    answers = await asyncio.gather(*(keyed("k") for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 202]
    (batch_id,) = {answer.json()["id"] for answer in answers}
    again = await keyed("k")
    assert (again.status_code, again.json()["id"]) == (200, batch_id)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["location"] == f"/v1/batches/{batch_id}"
    for other in (keyed("k", CSV + b"4,d,\n"), keyed("k", model="large"), keyed("k", max_tokens="9")):
        assert code_of(await other) == "idempotency_mismatch"
    assert code_of(await keyed("k" * 256)) == "validation_failed"
    (row,) = await stored(engine, tenant)
    assert len(await stored(engine, tenant, "batch_rows")) == 3
    (listed,) = (await client.get("/v1/budgets")).json()["data"]
    assert Decimal(listed["reserved_usd"]) == row["reserved_usd"] > 0
    assert (await keyed("another")).status_code == 202


@pytest.mark.parametrize(
    ("data", "begins", "ends"),
    [
        (b"\xef\xbb\xbfid;city\r\n1;K\xc3\xb6ln\r\n", b"\xef\xbb\xbfid;city;output;", b"\r\n"),
        (b"id,city\n1,K\xc3\xb6ln\n", b"id,city,output,", b"_usd\n"),
        ("id\tcity\n1\tKöln\n".encode("utf-16"), "\ufeffid\tcity\toutput".encode("utf-16-le"), b"\n\0"),
        (workbook([["id", "city"], [1, "Köln"]]), b"\xef\xbb\xbfid,city,output,", b"\r\n"),
        (b'{"id": 1.10, "city": "x"}\n', b"id,city,output,", b"\r\n"),
    ],
)
async def test_results_as_csv_have_the_form_of_the_input(
    client: httpx.AsyncClient, data: bytes, begins: bytes, ends: bytes
) -> None:
    made = (await send(client, data, "rows", prompt="{{city}}")).json()
    response = await client.get(f"/v1/batches/{made['id']}/results")
    encoding = "utf-16-le" if begins.startswith(b"\xff\xfe") else "utf-8"
    assert response.headers["content-type"] == f"text/csv; charset={encoding}"
    assert response.content.startswith(begins)
    assert response.content.endswith(ends)


async def test_other_formats_and_a_system_message_of_each_row(
    client: httpx.AsyncClient, engine: AsyncEngine, tenant: Tenant
) -> None:
    files = {
        "rows.jsonl": b'{"prompt": "one", "custom_id": "a"}\n{"custom_id": "b", "prompt": "two"}\n',
        "rows.xlsx": workbook([["prompt", "custom_id"], ["one", "a"], ["two", "b"]]),
        "rows.tsv": b"prompt\tcustom_id\r\none\ta\r\ntwo\tb\r\n",
    }
    for name, data in files.items():
        answer = await client.post(
            "/v1/batches/upload",
            files={"file": (name, data, "image/png")},  # whatever the sender says that it is
            data={"system": "You are {{custom_id}}."},
        )
        assert answer.status_code == 202, answer.text
    rows = await stored(engine, tenant, "batch_rows")
    assert [(row["custom_id"], row["request"]["messages"]) for row in rows] == 3 * [
        (
            custom_id,
            [{"role": "system", "content": f"You are {custom_id}."}, {"role": "user", "content": prompt}],
        )
        for custom_id, prompt in (("a", "one"), ("b", "two"))
    ]


async def test_every_problem_is_told_at_once_and_nothing_is_stored(
    client: httpx.AsyncClient, engine: AsyncEngine, tenant: Tenant
) -> None:
    data = b'id,text\n1,a\n2,"open\n1,b\n4\n5,\n6,\xff\n,z\n'
    response = await send(client, data, prompt="{{text}} {{missing}}", id_column="id")
    assert response.status_code == 422
    assert [(line, field) for line, field, _ in problems_of(response)] == [
        (None, "prompt"),
        (3, "file"),
        (4, "custom_id"),
        (5, "file"),
        (7, "file"),
        (8, "custom_id"),
    ]
    assert response.json()["problems"] == 6
    response = await send(client, data.replace(b"\xff", b"x"), id_column="id")
    assert (6, "prompt") in [(line, field) for line, field, _ in problems_of(response)]
    assert await stored(engine, tenant) == []


async def test_a_dry_run_tells_tokens_money_and_time_and_stores_nothing(
    client: httpx.AsyncClient, engine: AsyncEngine, tenant: Tenant, worker: Worker
) -> None:
    data = b"id,text\n1,aaaa\n2,bbbb\n3,aaaa\n"
    estimate = (await send(client, data, model="large", max_tokens="10", dry_run="true")).json()
    assert (estimate["object"], estimate["rows"], estimate["distinct_rows"]) == ("batch.estimate", 3, 3)
    assert estimate["route"][0] == estimate["model"]
    tokens = estimate["tokens"]
    assert tokens["input"]["low"] < tokens["input"]["expected"] <= tokens["input"]["high"]
    assert tokens["output"]["high"] == 30
    assert 0 < float(estimate["expected_cost_usd"]) < float(estimate["worst_case_usd"])
    assert estimate["seconds"] is None  # nothing was measured
    deduped = (await send(client, data, model="large", max_tokens="10", dry_run="true", dedupe="true")).json()
    assert deduped["distinct_rows"] == 2
    assert float(deduped["worst_case_usd"]) == pytest.approx(float(estimate["worst_case_usd"]) * 2 / 3)
    refused = await send(client, data, model="large", dry_run="true", max_cost_usd="0.000001")
    assert code_of(refused) == "cost_cap_exceeded"
    assert await stored(engine, tenant) == []
    recorded = (await send(client, data, model="large", max_tokens="10", dedupe="true")).json()
    assert recorded["reserved_usd"] == deduped["worst_case_usd"]


async def test_a_batch_reserves_as_a_whole_or_is_not_there(
    client: httpx.AsyncClient, engine: AsyncEngine, tenant: Tenant
) -> None:
    worst = (await send(client, model="large", dry_run="true")).json()["worst_case_usd"]
    budget = {"scope": "tenant", "window": "total", "limit_usd": worst}
    (await client.put("/v1/budgets", json=budget)).raise_for_status()
    assert code_of(await send(client, model="large", max_cost_usd="0.000001")) == "cost_cap_exceeded"
    assert (await send(client, model="large", max_cost_usd=worst)).status_code == 202
    refused = await send(client, model="large")
    assert (refused.status_code, code_of(refused)) == (402, "budget_exceeded")
    assert refused.json()["detail"].startswith("The batch may cost")
    (listed,) = (await client.get("/v1/budgets")).json()["data"]
    assert (listed["reserved_usd"], listed["remaining_usd"]) == (worst, "0.000000")
    assert len(await stored(engine, tenant)) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "", "id_column": "nowhere"}, "prompt"),
        ({"id_column": "nowhere"}, "id_column"),
        ({"colour": "red"}, "colour"),
        ({"max_tokens": "0"}, "max_tokens"),
        ({"completion_window": "40d"}, "completion_window"),
    ],
)
async def test_a_form_that_asks_what_cannot_be_is_refused(
    client: httpx.AsyncClient, fields: dict[str, str], param: str
) -> None:
    response = await send(client, CSV, **fields)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == param


async def test_other_refusals_keep_their_codes(client: httpx.AsyncClient) -> None:
    assert code_of(await send(client, model="nothing")) == "model_not_found"
    assert code_of(await send(client, model="alone", max_tokens="1000")) == "context_length_exceeded"
    assert code_of(await send(client, callback_url="https://example.org/")) == "callback_url_refused"


async def test_hostile_files_are_refused_and_leave_nothing(
    client: httpx.AsyncClient, engine: AsyncEngine, tenant: Tenant
) -> None:
    far_apart = '<row r="1"><c r="A1"><v>1</v></c></row><row r="1048576"><c r="ZZ1048576"><v>1</v></c></row>'
    hostile = {
        "gzip.csv": gzip.compress(CSV),
        "long.csv": b"id,text\n1," + b"x" * 7_000_000,
        "columns.csv": b"text," * 1_000_000,
        "nul.csv": b"id,text\n1,a\x00b\n",
        "bomb.xlsx": packed(sheet("<!--" + " " * 300_000_000 + "-->")),
        "far.xlsx": packed(sheet(far_apart)),
        "deep.jsonl": b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    }
    for name, data in hostile.items():
        response = await send(client, data, name)
        assert response.status_code == 422, (name, response.text)
        assert code_of(response) == "validation_failed"
    assert await stored(engine, tenant) == []
    assert (await send(client)).status_code == 202  # the next caller notices nothing


async def test_a_clerk_that_ended_is_not_lent_again(
    app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await send(client)).status_code == 202
    monkeypatch.setattr(Clerk, "alive", True)  # as it looks until the system has cleared it away
    (clerk,) = app.state.services.clerks._all
    clerk.process.kill()
    assert code_of(await send(client)) == "validation_failed"
    assert (await send(client)).status_code == 202


async def test_more_rows_than_are_allowed_are_refused(
    client: httpx.AsyncClient, engine: AsyncEngine, tenant: Tenant
) -> None:
    (problem,) = problems_of(await send(client, CSV + b"4,like the one before,\n" * 8))
    assert "more than 10 rows" in problem[2]
    assert await stored(engine, tenant) == []


async def test_too_much_is_refused_while_it_comes_in_whatever_it_says_of_itself(client: httpx.AsyncClient) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\na,b\r\n'
        while True:
            taken += 65_536
            yield b"x" * 65_536

    headers = {"content-type": "multipart/form-data; boundary=x"}
    response = await client.post("/v1/batches/upload", content=endless(), headers=headers)
    assert (response.status_code, code_of(response)) == (413, "payload_too_large")
    assert taken < 10 << 20


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{}", "application/json", 415),
        (b"nonsense", "multipart/form-data; boundary=x", 422),
        (b"", "multipart/form-data; boundary=x", 422),
        (b"--x--\r\n", "multipart/form-data", 415),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\na,b\n',
            "multipart/form-data; boundary=x",
            422,
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
            422,
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\na,b\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
            422,
        ),
    ],
)
async def test_a_broken_form_is_refused(client: httpx.AsyncClient, body: bytes, content_type: str, status: int) -> None:
    response = await client.post("/v1/batches/upload", content=body, headers={"content-type": content_type})
    assert response.status_code == status, response.text
    code_of(response)


async def test_an_upload_is_one_request_of_a_plan(
    app: FastAPI, client: httpx.AsyncClient, engine: AsyncEngine, tenant: Tenant
) -> None:
    update = text("UPDATE api_keys SET plan = 'free' WHERE tenant_id = :id")
    await fetch_all(engine, update, {"id": tenant.id})
    answers = [await client.post("/v1/batches/upload", content=b"{}") for _ in range(10)]
    assert {answer.status_code for answer in answers} == {415}
    assert code_of(await client.post("/v1/batches/upload", content=b"{}")) == "rate_limited"


async def test_rows_of_a_batch_are_seen_by_their_tenant_only(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient
) -> None:
    batch: Json = (await send(client)).json()
    assert isinstance(from_wire(BATCH, batch["id"]), UUID)
    assert datetime.fromtimestamp(batch["created_at"]).year >= 2026  # noqa: DTZ006 - only that it is one
    assert (await stranger.get(f"/v1/batches/{batch['id']}")).status_code == 404
