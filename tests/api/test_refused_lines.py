"""A line of a batch file that would be refused as a request of its own fails alone, and the others of the file run.

As OpenAI's batches do: ProjectTech4DevAI/kaapi-backend#723, openai/openai-openapi#302 (an error line with the answer
that the request alone would have had), llm-d/llm-d-batch-gateway#221 (lines of both files together are all lines).
"""

import json

import httpx
import pytest

from models.ids import BATCH, from_wire
from tests.api.acting import Json
from tests.api.test_batch_control import COST, Mill, mill  # noqa: F401 - a fixture
from tests.api.test_openai_batches import budget, create, line, reserved, results, upload

pytestmark = pytest.mark.anyio

REFUSED = line("tools", tools=[{}])


async def make(client: httpx.AsyncClient, *lines: Json, **fields: object) -> Json:
    batch: Json = (await create(client, await upload(client, list(lines)), **fields)).json()
    return batch


async def errors(client: httpx.AsyncClient, batch: Json) -> list[Json]:
    content = (await client.get(f"/v1/files/{batch['error_file_id']}/content")).text
    return [json.loads(found) for found in content.splitlines()]


async def test_they_have_failed_from_the_beginning_and_reserve_nothing(client: httpx.AsyncClient) -> None:
    await budget(client, "1.00")
    more = [line("model", model="none"), line("long", max_tokens=10**6), line("user", user="x")]
    extra = {**line("extra"), "colour": "red"}
    batch = await make(client, REFUSED, line("a"), *more, extra, line("b"))
    assert (batch["status"], batch["errors"], batch["rows_per_s"]) == ("in_progress", None, None)
    assert batch["request_counts"] == {"total": 7, "completed": 0, "failed": 5}
    assert (batch["counts"]["queued"], batch["counts"]["failed"]) == (2, 5)
    assert await reserved(client) == "0.000492"  # as that of two rows alone
    told = {row["custom_id"]: (row["error"]["code"], row["error"]["param"]) for row in await results(client, batch)}
    assert told == {
        "tools": ("validation_failed", "tools"),
        "model": ("model_not_found", "model"),
        "long": ("context_length_exceeded", "max_tokens"),
        "user": ("validation_failed", "user"),
        "extra": ("validation_failed", "colour"),
    }


async def test_the_others_run_and_the_batch_completes_with_an_error_line_for_each(
    client: httpx.AsyncClient,
    mill: Mill,  # noqa: F811 - a fixture
) -> None:
    await budget(client, "1.00")
    batch = await make(client, REFUSED, line("a"), line("m", model="none"), line("b"), line("z", stream=True))
    mill.id = from_wire(BATCH, batch["id"])  # type: ignore[assignment]  # it is the id of a batch
    await mill.run()
    batch = await mill.get()
    assert (batch["status"], batch["counts"]["completed"], batch["counts"]["failed"]) == ("completed", 2, 3)
    content = (await client.get(f"/v1/files/{batch['output_file_id']}/content")).text
    assert [json.loads(found)["custom_id"] for found in content.splitlines()] == ["a", "b"]
    told = {row["custom_id"]: row for row in await errors(client, batch)}
    assert {name: row["response"]["status_code"] for name, row in told.items()} == {"tools": 422, "m": 404, "z": 422}
    error = told["tools"]["response"]["body"]["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "validation_failed", "tools")
    assert "tools" in error["message"]
    assert told["tools"]["response"]["request_id"].endswith("_1")
    assert told["tools"]["error"] is None
    assert mill.balance() == (2 * COST, 0)
    csv = (await client.get(batch["results_url"], params={"format": "csv"})).text.splitlines()
    assert [row.split(",")[0] for row in csv[1:]] == ["tools", "a", "m", "b", "z"]
    finished = await client.get(batch["results_url"], params={"format": "jsonl", "order": "finished"})
    ids = [json.loads(row)["custom_id"] for row in finished.text.splitlines()]
    assert (sorted(ids[:2]), ids[2:]) == (["a", "b"], ["tools", "m", "z"])
    assert (await mill.post("retry")).status_code == 409  # they would be refused again


async def test_a_batch_with_them_that_is_cancelled_and_run_again_adds_up(
    client: httpx.AsyncClient,
    mill: Mill,  # noqa: F811 - a fixture
) -> None:
    batch = await make(client, REFUSED, line("a"), line("y", tools=[{}]), line("b"), dedupe=True)
    mill.id = from_wire(BATCH, batch["id"])  # type: ignore[assignment]  # it is the id of a batch
    for _ in range(3):
        await mill.post("cancel")
        await mill.look()
        batch = await mill.get()
        assert (batch["status"], batch["counts"]["failed"], batch["counts"]["cancelled"]) == ("cancelled", 2, 2)
        told = [(row["custom_id"], (row["response"] or {}).get("status_code")) for row in await errors(client, batch)]
        assert told == [("tools", 422), ("a", None), ("y", 422), ("b", None)]
        assert (await mill.post("retry")).is_success
        batch = await mill.get()
        assert (batch["status"], batch["counts"]["failed"], batch["counts"]["queued"]) == ("in_progress", 2, 2)
        await mill.feed(2)
    await mill.run()
    batch = await mill.get()
    assert (batch["status"], batch["counts"]["completed"], batch["counts"]["failed"]) == ("completed", 2, 2)


async def test_many_of_them_do_not_keep_the_rows_behind_them_waiting(
    client: httpx.AsyncClient,
    mill: Mill,  # noqa: F811 - a fixture
) -> None:
    many = [line(f"x{number}", n=2) for number in range(200)]
    batch = await make(client, *many, line("a"))
    mill.id = from_wire(BATCH, batch["id"])  # type: ignore[assignment]  # it is the id of a batch
    assert await mill.feed() == 1


async def test_a_budget_that_is_too_small_is_told_whatever_lines_are_refused(client: httpx.AsyncClient) -> None:
    await budget(client, "0.000300")
    batch = await make(client, line("a"), line("b"), REFUSED)
    (error,) = batch["errors"]["data"]
    assert (batch["status"], error["code"]) == ("failed", "budget_exceeded")


async def test_a_file_of_them_alone_fails_with_all_of_their_problems(client: httpx.AsyncClient) -> None:
    batch = await make(client, REFUSED, line("n", n=2, logprobs=True))
    assert batch["status"] == "failed"
    told = [(error["line"], error["param"]) for error in batch["errors"]["data"]]
    assert told == [(1, "tools"), (2, "n"), (2, "logprobs")]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({**line("a"), "custom_id": None}, "custom_id"),
        ({**line("a"), "custom_id": "x" * 513}, "custom_id"),
        ({**line("a"), "custom_id": 7}, "custom_id"),
        ({**line("a"), "custom_id": "b"}, "custom_id"),
        ({**line("a"), "method": "GET"}, "method"),
        ({**line("a"), "url": "/v1/embeddings"}, "url"),
        ({**line("a"), "body": None}, "body"),
        ({**line("a"), "body": [1]}, "body"),
    ],
)
async def test_a_line_that_is_not_one_of_the_batch_fails_the_file(
    client: httpx.AsyncClient, wrong: Json, param: str
) -> None:
    batch = await make(client, line("b"), wrong, REFUSED)
    assert batch["status"] == "failed"
    assert [(error["line"], error["param"]) for error in batch["errors"]["data"]] == [(2, param), (3, "tools")]


async def test_a_refused_line_counts_among_the_custom_ids(client: httpx.AsyncClient) -> None:
    batch = await make(client, line("b"), REFUSED, line("tools"))
    assert [(error["line"], error["code"]) for error in batch["errors"]["data"]] == [
        (2, "validation_failed"),
        (3, "duplicate_custom_id"),
    ]
