"""Results of batches: as CSV and JSONL, at any time, in either order, with memory that stays flat."""

import csv
import io
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from openai.types.chat import ChatCompletion
from sqlalchemy.ext.asyncio import AsyncEngine

from api.batches.records import Dialect
from api.batches.results import OWN_COLUMNS, PAGE_BYTES, PAGE_ROWS, Order, csv_results, jsonl_results, openai_lines
from models.database import create_engine, dump_json, fetch_one, read_all
from models.ids import new_id
from models.pricing import Usage
from models.results import OUTPUT_BYTES, SELECT_SHEET
from tests.batches import new_batch
from tests.openai_types import check
from tests.stack import Database

pytestmark = pytest.mark.anyio

Json = dict[str, Any]  # Any: JSON
ERROR = {"code": "provider_rejected", "message": "no, thanks", "retryable": False}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def database(database: Database) -> Database:
    """With its tenant made, which no event loop can wait for."""
    assert database.tenant_id.int
    return database


@pytest.fixture
async def engine(database: Database) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database.url, name="tests", pool_size=1)
    yield engine
    await engine.dispose()


def end_row(
    database: Database, batch_id: UUID, row: int, text: str | None = None, *, after_s: int = 0, **columns: object
) -> None:
    """Record the job of a row as ended: completed with a text, or failed."""
    result = {"text": text, "finish_reason": "stop", "model": "echo"}
    values = {
        "id": new_id(),
        "tenant_id": database.tenant_id,
        "status": "failed" if text is None else "completed",
        "model": "echo",
        "route": ["echo"],
        "tier": "mock",
        "queue": "mock",
        "request": "{}",
        "result": None if text is None else dump_json(result),
        "error": dump_json(ERROR) if text is None else None,
        "input_tokens": 3,
        "output_tokens": 4,
        "cost_usd": "0.000011",
        "batch_id": batch_id,
        "batch_row": row,
        "batch_round": 0,
    } | columns
    names, marks = ", ".join(values), ", ".join("%s" for _ in values)
    database.rows(
        f"INSERT INTO jobs ({names}, expires_at, finished_at)"
        f" VALUES ({marks}, now() + interval '1 hour', now() + make_interval(secs => %s))",
        *values.values(),
        after_s,
    )


async def as_csv(
    engine: AsyncEngine, database: Database, batch_id: UUID, *, order: Order = "input", raw: bool = False
) -> list[list[str]]:
    params = {"id": batch_id, "tenant_id": database.tenant_id}
    sheet = await fetch_one(engine, SELECT_SHEET, params)
    assert sheet is not None
    content = b"".join([piece async for piece in csv_results(partial(read_all, engine), sheet, order, raw=raw)])
    return list(csv.reader(io.StringIO(content.decode(), newline="")))


async def documents(lines: AsyncIterator[bytes]) -> list[Json]:
    content = b"".join([piece async for piece in lines])
    return [json.loads(line) for line in content.splitlines()]


async def test_csv_has_the_inputs_columns_and_ours(database: Database, engine: AsyncEngine) -> None:
    batch_id = new_batch(database, ["first", 'a "quoted"\ntext', "runs"], columns=["text"])
    end_row(database, batch_id, 1, "answer, one")
    end_row(database, batch_id, 2)
    assert await as_csv(engine, database, batch_id) == [
        ["text", "output", "error", "model", "input_tokens", "output_tokens", "cost_usd"],
        ["first", "answer, one", "", "echo", "3", "4", "0.000011"],
        ['a "quoted"\ntext', "", "provider_rejected: no, thanks", "", "3", "4", "0.000011"],
    ]


async def test_a_column_of_the_input_that_has_our_columns_name_stays(database: Database, engine: AsyncEngine) -> None:
    batch_id = new_batch(database, ["x"], columns=["output"])
    assert (await as_csv(engine, database, batch_id))[0][:2] == ["output", "headrace_output"]


@pytest.mark.parametrize("cell", ["=1+1", "+A1", "-1+2", "@SUM(A1)", "\t=1", "\r1", "\n1", "  =cmd|' /C calc'!A0"])
async def test_cells_that_a_spreadsheet_would_execute_are_neutralised_unless_raw(
    database: Database, engine: AsyncEngine, cell: str
) -> None:
    batch_id = new_batch(database, [cell], columns=[cell])
    end_row(database, batch_id, 1, cell)
    assert [row[:2] for row in await as_csv(engine, database, batch_id)] == [
        [f"'{cell}", "output"],
        [f"'{cell}", f"'{cell}"],
    ]
    assert [row[:2] for row in await as_csv(engine, database, batch_id, raw=True)] == [[cell, "output"], [cell, cell]]


@pytest.mark.parametrize(
    "dialect",
    [
        Dialect(),
        Dialect(";", mark=True),
        Dialect("\t", "\r\n", True, "utf-16-le"),
        Dialect("\t", "\n", True, "utf-16-be"),
        Dialect("|", "\n"),
        Dialect(line_end="\r"),
    ],
    ids=str,
)
async def test_csv_is_written_as_the_input_was(database: Database, engine: AsyncEngine, dialect: Dialect) -> None:
    """sqlpage/SQLPage#528, getodk/central#752, mtotschnig/MyExpenses#1432, ag-grid/ag-grid#655."""
    batch_id = new_batch(database, ["Köln"], columns=["city"], dialect=dump_json(asdict(dialect)))
    answer = "a;b,c\td|e\rf\ng\r\nh \U0001f600"
    end_row(database, batch_id, 1, answer)
    sheet = await fetch_one(engine, SELECT_SHEET, {"id": batch_id, "tenant_id": database.tenant_id})
    assert sheet is not None
    content = b"".join([piece async for piece in csv_results(partial(read_all, engine), sheet, "input", raw=False)])
    text = content.decode(dialect.encoding)
    assert text.startswith("\ufeff") == dialect.mark
    text = text.removeprefix("\ufeff")
    assert text.endswith(dialect.line_end)
    assert text.startswith(dialect.separator.join(("city", *OWN_COLUMNS)) + dialect.line_end)
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=dialect.separator))
    assert rows[1][:2] == ["Köln", answer]


async def test_the_latest_round_of_a_row_counts_and_one_that_is_to_run_again_has_no_result(
    database: Database, engine: AsyncEngine
) -> None:
    batch_id = new_batch(database, ["a", "b"])
    for row in (1, 2):
        end_row(database, batch_id, row)
    database.rows("UPDATE batch_rows SET round = 1 WHERE batch_id = %s", batch_id)
    end_row(database, batch_id, 1, "at last", batch_round=1)
    found = await documents(jsonl_results(partial(read_all, engine), batch_id, "input"))
    assert [(line["row"], line["status"], line["output"]) for line in found] == [(1, "completed", "at last")]


async def test_rows_that_share_an_answer_cost_nothing(database: Database, engine: AsyncEngine) -> None:
    batch_id = new_batch(database, ["a", "b", "a"], same_as={3: 1})
    end_row(database, batch_id, 1, "A")
    end_row(database, batch_id, 2, "B", after_s=5)
    found = await documents(jsonl_results(partial(read_all, engine), batch_id, "input"))
    told = [(line["custom_id"], line["output"], line["input_tokens"], line["cost_usd"]) for line in found]
    assert told == [("r1", "A", 3, "0.000011"), ("r2", "B", 3, "0.000011"), ("r3", "A", 0, "0.000000")]
    assert found[0]["job_id"] == found[2]["job_id"]
    assert found[0]["input"] == {"text": "a"}
    finished = await documents(jsonl_results(partial(read_all, engine), batch_id, "finished"))
    assert [line["row"] for line in finished] == [1, 3, 2]


async def test_rows_come_as_they_finished_when_asked_for(database: Database, engine: AsyncEngine) -> None:
    batch_id = new_batch(database, ["a", "b", "c"])
    for row, after_s in ((1, 30), (2, 10), (3, 20)):
        end_row(database, batch_id, row, f"{row}", after_s=after_s)
    assert [row[1] for row in (await as_csv(engine, database, batch_id, order="finished"))[1:]] == ["2", "3", "1"]


async def test_rows_that_an_ended_batch_did_not_run_say_so(database: Database, engine: AsyncEngine) -> None:
    batch_id = new_batch(database, ["a", "b", "c"])
    end_row(database, batch_id, 1, "A")
    end_row(database, batch_id, 2, status="cancelled", error=None)
    assert len(await documents(openai_lines(partial(read_all, engine), batch_id, failed=True))) == 1
    database.rows("UPDATE batches SET status = 'cancelled' WHERE id = %s", batch_id)
    lines = await documents(openai_lines(partial(read_all, engine), batch_id, failed=True))
    assert [(line["custom_id"], line["response"], line["error"]["code"]) for line in lines] == [
        ("r2", None, "batch_cancelled"),
        ("r3", None, "batch_cancelled"),
    ]
    database.rows("UPDATE batches SET status = 'expired' WHERE id = %s", batch_id)
    assert (await as_csv(engine, database, batch_id))[3][:3] == ["c", "", "batch_expired"]


async def test_output_and_error_files_have_openais_lines_and_the_size_that_is_told(
    database: Database, engine: AsyncEngine
) -> None:
    batch_id = new_batch(database, ["a", "b"])
    end_row(database, batch_id, 1, 'said "é\t')
    end_row(database, batch_id, 2)
    (output,) = await documents(openai_lines(partial(read_all, engine), batch_id, failed=False))
    body = output["response"].pop("body")
    assert body["choices"][0]["message"] == {"role": "assistant", "content": 'said "é\t', "refusal": None}
    assert body["usage"] == Usage(3, 4).as_openai()
    check(ChatCompletion, body)
    assert output["response"].pop("request_id").startswith("req_")
    assert output["id"].startswith("batch_req_")
    assert (output["custom_id"], output["response"], output["error"]) == ("r1", {"status_code": 200}, None)
    (failed,) = await documents(openai_lines(partial(read_all, engine), batch_id, failed=True))
    assert failed["response"]["status_code"] == 400
    assert failed["response"]["body"]["error"] == {
        "message": "no, thanks",
        "type": "invalid_request_error",
        "param": None,
        "code": "provider_rejected",
    }
    for which, is_failed in (("completed", False), ("failed", True)):
        sent = b"".join([piece async for piece in openai_lines(partial(read_all, engine), batch_id, failed=is_failed)])
        measured = await fetch_one(engine, OUTPUT_BYTES[which], {"batch_id": batch_id, "after": 0, "last": 10})
        assert measured is not None
        assert measured["bytes"] == len(sent)


def use(database: Database, batch_id: UUID, row: int, *attempts: tuple[int, int]) -> None:
    """Record the attempts of a row's job by their cached and reasoning tokens, and count them in the batch."""
    job_id = database.value("SELECT id FROM jobs WHERE batch_id = %s AND batch_row = %s", batch_id, row)
    for number, (cached, reasoning) in enumerate(attempts, 1):
        database.rows(
            "INSERT INTO attempts (id, job_id, number, llm, provider, worker_id, started_at, cached_input_tokens,"
            " reasoning_tokens) VALUES (%s, %s, %s, 'echo', 'mock', %s, now(), %s, %s)",
            *(new_id(), job_id, number, new_id(), cached, reasoning),
        )
        database.rows(
            "INSERT INTO batch_counts (batch_id, writer, cached_input_tokens, reasoning_tokens)"
            " VALUES (%s, %s, %s, %s)",
            *(batch_id, new_id(), cached, reasoning),
        )


async def test_lines_of_an_output_file_say_what_each_row_used_in_detail(
    database: Database, engine: AsyncEngine
) -> None:
    """BerriAI/litellm#36882, OpenHands/software-agent-sdk#2896: cached tokens, which cost less, are told by the row."""
    batch_id = new_batch(database, ["a", "b", "a"], same_as={3: 1})
    end_row(database, batch_id, 1, "A", input_tokens=100, output_tokens=9)
    end_row(database, batch_id, 2, "B")
    use(database, batch_id, 1, (50, 4), (30, 0))
    lines = await documents(openai_lines(partial(read_all, engine), batch_id, failed=False))
    assert [line["response"]["body"]["usage"] for line in lines] == [
        Usage(100, 9, 80, 4).as_openai(),
        Usage(3, 4).as_openai(),
        Usage().as_openai(),
    ]


SEPARATORS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


async def test_no_reader_splits_a_line_of_json_and_its_size_is_told(database: Database, engine: AsyncEngine) -> None:
    """langgenius/dify#39008, Soju06/codex-lb#1010: ``splitlines`` and httpx's iter_lines split at more than line feeds,
    and the official client's ``text.splitlines()`` reads an output file so."""
    prompt, answer = f"p{SEPARATORS}q", f"a{SEPARATORS}\\u2028é😀b"
    batch_id = new_batch(database, [prompt], columns=["text\u2028"])
    end_row(database, batch_id, 1, answer)
    read = partial(read_all, engine)
    output = b"".join([piece async for piece in openai_lines(read, batch_id, failed=False)])
    (line,) = output.decode().splitlines()
    assert json.loads(line)["response"]["body"]["choices"][0]["message"]["content"] == answer
    measured = await fetch_one(engine, OUTPUT_BYTES["completed"], {"batch_id": batch_id, "after": 0, "last": 10})
    assert measured is not None
    assert measured["bytes"] == len(output)
    (line,) = b"".join([piece async for piece in jsonl_results(read, batch_id, "input")]).decode().splitlines()
    assert (json.loads(line)["output"], json.loads(line)["input"]) == (answer, {"text\u2028": prompt})
    rows = await as_csv(engine, database, batch_id)
    assert rows[1][:2] == [prompt, answer]


@pytest.mark.parametrize("order", ["input", "finished"])
async def test_large_rows_come_a_few_at_a_time_and_nothing_is_held_between(
    database: Database, engine: AsyncEngine, order: Order
) -> None:
    batch_id = new_batch(database, ["x" * 700_000] * 9)
    for row in range(1, 10):
        end_row(database, batch_id, row, f"{row}" * 300_000)
    rows = []
    async for piece in jsonl_results(partial(read_all, engine), batch_id, order):
        assert len(piece) < PAGE_BYTES + 1_100_000
        rows += [json.loads(line)["row"] for line in piece.splitlines()]
        busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'headrace-tests' AND state <> 'idle'"
        assert database.value(busy) == 0
    assert rows == list(range(1, 10))


@pytest.mark.parametrize("order", ["input", "finished"])
async def test_many_rows_come_page_after_page(database: Database, engine: AsyncEngine, order: Order) -> None:
    rows = 2 * PAGE_ROWS + 7
    batch_id = new_batch(database, ["x"] * rows)
    database.rows("UPDATE batches SET status = 'cancelled' WHERE id = %s", batch_id)
    end_row(database, batch_id, rows, "the only one")
    found = [line["row"] for line in await documents(jsonl_results(partial(read_all, engine), batch_id, order))]
    assert found == (list(range(1, rows + 1)) if order == "input" else [rows, *range(1, rows)])
