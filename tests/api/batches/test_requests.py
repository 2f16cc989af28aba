"""The input file of OpenAI's Batch API: every problem with its line, and rows as jobs of their own would be."""

import codecs
import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest

from api.batches.requests import MAX_LINE_BYTES, MOST_TOLD, Line, RequestReader, lines_of
from api.batches.rows import BatchDraft
from models.catalog import Catalog, load_catalog
from models.errors import ValidationFailed
from models.ids import new_id
from models.routing import Router

pytestmark = pytest.mark.anyio

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
Json = dict[str, Any]  # Any: JSON


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    path = tmp_path / "catalog.toml"
    path.write_text("""
        [tiers.small]
        queue = "small"
        pool = "cpu"
        [llms.tiny]
        tier = "small"
        provider = "mock"
        context_window = 1000
        input_price = "1"
        output_price = "2"
        [llms.vectors]
        tier = "small"
        provider = "mock"
        embeddings = true
        context_window = 1000
        input_price = "1"
        output_price = "0"
    """)
    return load_catalog(path)


def line(custom_id: object, url: str = CHAT, **body: object) -> Json:
    content = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]} if url == CHAT else {}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": content | body}


async def pieces(content: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


class Reading:
    """A file that was read: the rows that were handed on, or the errors."""

    def __init__(self, catalog: Catalog, *, endpoint: str = CHAT, dedupe: bool = False) -> None:
        self.draft = BatchDraft(new_id(), new_id(), endpoint, "24h", 86_400.0, dedupe=dedupe)
        self.reader = RequestReader(self.draft, catalog, Router(catalog))
        self.rows: list[list[str]] = []

    async def read(self, documents: Iterable[object], *, size: int = 1000) -> "Reading":
        content = b"\n".join(d if isinstance(d, bytes) else json.dumps(d).encode() for d in documents)
        try:
            async for chunk in self.reader.chunks(pieces(content, size)):
                self.rows += [row.split("\t") for row in chunk.data.decode().splitlines()]
        except ValidationFailed:
            self.rows.clear()
        return self

    @property
    def errors(self) -> list[tuple[str, str | None, int | None]]:
        return [(error["code"], error["param"], error["line"]) for error in self.reader.errors]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_lines_are_the_same_however_the_file_is_cut(size: int) -> None:
    content = b'\xef\xbb\xbf{"a":1}\r\n\n  \n{"b":2}\n\nlast'
    assert [(found.number, found.content) async for found in lines_of(pieces(content, size))] == [
        (1, b'{"a":1}'),
        (4, b'{"b":2}'),
        (6, b"last"),
    ]


@pytest.mark.parametrize("size", [1, 2, 1000])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
async def test_utf16_is_named_once_and_not_for_each_line(size: int, encoding: str) -> None:
    """mkht/PSOpenAI#19."""
    content = f"\ufeff{json.dumps(line('a'))}\n{json.dumps(line('b'))}\n".encode(encoding)
    with pytest.raises(ValidationFailed, match="UTF-16 text; JSONL is UTF-8"):
        [found async for found in lines_of(pieces(content, size))]


@pytest.mark.parametrize("marks", [1, 2])
async def test_marks_blank_lines_and_a_missing_last_line_end_cost_no_row(catalog: Catalog, marks: int) -> None:
    """infiniflow/ragflow#19179, llm-d/llm-d-batch-gateway#574, vllm-project/vllm#7132."""
    good = [json.dumps(line(name)).encode() for name in ("a", "b")]
    content = [codecs.BOM_UTF8 * marks, good[0] + b"\r", b"   ", good[1]]
    reading = await Reading(catalog).read(content)
    assert [row[1:4] for row in reading.rows] == [["1", "2", "a"], ["2", "4", "b"]]
    reading = await Reading(catalog).read([*content, b"null", b"[1,2]"])
    assert {found for _, _, found in reading.errors} == {5, 6}


async def test_a_line_without_end_is_never_held(catalog: Catalog) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"first\n"
        for _ in range(20):
            yield b"x" * (1 << 20)
        yield b"\nlast\n"

    assert [found async for found in lines_of(endless())] == [Line(1, b"first"), Line(2, None), Line(3, b"last")]
    assert MAX_LINE_BYTES < 20 << 20


async def test_rows_are_planned_as_jobs_of_their_own(catalog: Catalog) -> None:
    given = [line("a", max_completion_tokens=7, stop="x", temperature=0.5, n=1), b"", line("b", model="small")]
    reading = await Reading(catalog).read(given)
    assert [row[1:5] for row in reading.rows] == [["1", "1", "a", "0"], ["2", "3", "b", "1"]]
    request = json.loads(reading.rows[0][6])
    assert request == {
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 7,
        "temperature": 0.5,
        "stop": ["x"],
    }
    assert [(way["model"], list(way["route"]), way["queue"]) for way in reading.draft.routes] == [
        ("tiny", ["tiny"], "small"),
        ("small", ["tiny"], "small"),
    ]
    assert reading.draft.model is None
    assert float(reading.rows[0][7]) == pytest.approx((2 + 16 + 128 + 2 * 7) / 1e6)


async def test_rows_for_embeddings_are_priced_by_their_input_alone(catalog: Catalog) -> None:
    given = [line("a", EMBEDDINGS, model="vectors", input=["x", "yy"], dimensions=3)]
    reading = await Reading(catalog, endpoint=EMBEDDINGS).read(given)
    assert json.loads(reading.rows[0][6]) == {"input": ["x", "yy"], "encoding_format": "float", "dimensions": 3}
    assert float(reading.rows[0][7]) == pytest.approx((3 + 2 * 16 + 128) / 1e6)
    assert reading.draft.model == "vectors"


async def test_every_problem_is_told_with_its_line(catalog: Catalog) -> None:
    reading = await Reading(catalog).read(
        [
            line("ok"),
            b"{not json",
            b"[]",
            line("tools", tools=[{"type": "function"}]),
            line("model", model="none"),
            line("", temperature=3),
            line("ok"),
            line("stream", stream=True, user="me"),
            line("long", messages=[{"role": "user", "content": "x" * 200_000}]),
            {**line("url"), "url": EMBEDDINGS, "method": "GET", "extra": 1},
            line("part", messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
            b'{"custom_id": "nul", "body": "\\u0000"}',
            line("max", max_tokens=5, max_completion_tokens=6),
        ]
    )
    assert reading.rows == []
    assert reading.errors == [
        ("validation_failed", "body", 2),
        ("validation_failed", "body", 3),
        ("validation_failed", "tools", 4),
        ("model_not_found", "model", 5),
        ("validation_failed", "custom_id", 6),
        ("duplicate_custom_id", "custom_id", 7),
        ("validation_failed", "stream", 8),
        ("validation_failed", "user", 8),
        ("context_length_exceeded", "messages", 9),
        ("validation_failed", "method", 10),
        ("validation_failed", "url", 10),
        ("validation_failed", "messages.0.content.0.type", 11),
        ("validation_failed", "body", 12),
        ("validation_failed", "max_completion_tokens", 13),
    ]
    assert "line 1" not in reading.reader.errors[0]["message"]


async def test_token_ids_in_one_line_of_embeddings_refuse_that_line(catalog: Catalog) -> None:
    given = {"a": "text", "ids": [1, 2, 3], "lists": [[1, 2], [3]], "empty": ["x", ""], "mixed": ["x", 1.5]}
    lines = [line(name, EMBEDDINGS, model="vectors", input=value) for name, value in given.items()]
    reading = await Reading(catalog, endpoint=EMBEDDINGS).read([*lines, line("u", EMBEDDINGS, input="x", user="u")])
    told = {row[3]: json.loads(row[6])["refused"] for row in reading.rows if row[4] == "-1"}
    assert reading.draft.refused_rows == 5
    assert {name: refusal["param"] for name, refusal in told.items()} == {
        "ids": "input",
        "lists": "input",
        "empty": "input.1",
        "mixed": "input.1",
        "u": "user",
    }
    assert "check_embedding_ctx_length=False" in told["ids"]["message"]


async def test_of_very_many_problems_the_first_are_told_and_the_rest_counted(catalog: Catalog) -> None:
    reading = await Reading(catalog).read([b"?"] * 1000)
    assert [error["line"] for error in reading.reader.errors] == [*range(1, MOST_TOLD + 1), None]
    assert reading.reader.errors[-1]["message"] == "There are 900 more problems."


async def test_a_file_without_requests_is_refused(catalog: Catalog) -> None:
    assert (await Reading(catalog).read([b"", b"  "])).errors == [("empty_file", None, None)]


async def test_nothing_is_handed_on_after_the_first_problem(catalog: Catalog) -> None:
    reading = Reading(catalog)
    handed_on = 0
    content = b"\n".join([*[json.dumps(line(str(n))).encode() for n in range(1200)], b"?"] * 2)
    with contextlib.suppress(ValidationFailed):
        async for chunk in reading.reader.chunks(pieces(content, 10_000)):
            handed_on += chunk.rows
    assert handed_on == 1000
    assert len(reading.errors) > 1000 // MOST_TOLD


async def test_equal_requests_have_equal_digests_where_they_are_wanted(catalog: Catalog) -> None:
    given = [line("a"), line("b"), line("c", seed=1)]
    digests = [row[8] for row in (await Reading(catalog, dedupe=True).read(given)).rows]
    assert digests[0] == digests[1] != digests[2]
    assert {row[8] for row in (await Reading(catalog).read(given)).rows} == {"\\N"}
