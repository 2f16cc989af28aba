"""Reading the input file of OpenAI's Batch API: a request on each line, checked and planned as a job of its own."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import orjson

from api.auth import Caller
from api.batches.planning import MAX_ID_CHARS, Marks
from api.batches.problems import Problems
from api.batches.quotas import RowQuota
from api.batches.rows import BatchDraft, Chunk, Row, encode_rows, refused_row
from api.bodies import JsonObject, parse_json_object, parse_leniently, shorten
from api.fields.chat import Surface
from api.fields.others import EMBEDDING_LINE_TABLE
from api.fields.reading import read_request, refused
from api.openai_requests import embedding_request, plan_embedding
from api.ratelimits import worst_tokens
from api.submission import plan_job
from models.catalog import Catalog
from models.errors import FieldProblem, HeadraceError, ValidationFailed
from models.routing import Router
from models.storable import storable_text
from models.textfiles import UTF16_MARKS, marks_of

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
MAX_LINE_BYTES = 4 << 20
MAX_ROWS = 1_000_000
MOST_TOLD = 100
_ROWS_AT_ONCE = 500
_BYTES_AT_ONCE = 1 << 20
_LINES_A_TURN = 10
"""Lines that are read before others have their turn on the event loop: some milliseconds' work."""

_KEYS = frozenset({"custom_id", "method", "url", "body"})

Error = dict[str, Any]  # Any: JSON
Route = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the file; ``content`` is None where it is longer than a line may be."""

    number: int
    content: bytes | None


async def lines_of(content: AsyncIterator[bytes]) -> AsyncIterator[Line]:
    """The lines of a file that are not blank, counted from 1; never holds more than one line and one piece.

    Raises ValidationFailed for UTF-16.
    """
    held = bytearray()
    number, too_long = 0, False
    async for piece in content:
        if not number and (bytes(held[:1]) + piece[:2])[:2] in UTF16_MARKS:
            raise ValidationFailed("The file is UTF-16 text; JSONL is UTF-8: save it as that.", param="input_file_id")
        *ended, rest = piece.split(b"\n")
        for part in ended:
            number += 1
            if too_long or len(held) + len(part) > MAX_LINE_BYTES:
                yield Line(number, None)
            elif line := _stripped(bytes(held) + part, number):
                yield Line(number, line)
            held.clear()
            too_long = False
        too_long = too_long or len(held) + len(rest) > MAX_LINE_BYTES
        if too_long:
            held.clear()
        else:
            held += rest
    last = _stripped(bytes(held), number + 1)
    if too_long or last:
        yield Line(number + 1, None if too_long else last)


def _stripped(line: bytes, number: int) -> bytes:
    return (line[marks_of(line) :] if number == 1 else line).strip()


class RequestReader:
    """Reads one file. After the last chunk ``draft`` is complete, or ``errors`` says what is wrong.

    A line whose request would be refused as one of its own becomes a row that has failed, and the others run. A line
    that cannot be told from others, or is not one of this batch, fails the file: not JSON, no custom id or one that
    another line has, another method or url, no body. So does a file all of whose lines are refused.
    """

    def __init__(self, draft: BatchDraft, catalog: Catalog, router: Router, quota: RowQuota | None = None) -> None:
        self._draft = draft
        self._quota = quota if quota is not None and quota.plan is not None else None
        self._tokens = 0
        self._catalog = catalog
        self._router = router
        self._caller = Caller(draft.tenant_id, draft.api_key_id, frozenset())
        self._own = {"expires_in": int(draft.expires_in)}
        self._ids = Marks()
        self._routes: dict[Route, int] = {}
        self._models: set[str] = set()
        self._rows = 0
        self._wrong = 0
        self._told: list[Error] = []
        self._refused = 0
        self._refusals: list[Error] = []

    async def chunks(self, content: AsyncIterator[bytes]) -> AsyncIterator[Chunk]:
        """The rows to copy, until something is wrong with one; the rest of the file is then only looked at.

        Raises ValidationFailed after the last line if anything is wrong, for :attr:`errors` to say what, and
        RateLimited where the plan of the batch's key does not allow so many rows.
        """
        rows: list[Row] = []
        size = turn = 0
        async for line in lines_of(content):
            if (turn := turn + 1) % _LINES_A_TURN == 0:
                await asyncio.sleep(0)
            row = self._read(line)
            if self._quota is not None:
                self._quota.check(self._rows)
            if row is None or self._wrong:
                rows.clear()
                continue
            rows.append(row)
            size += len(line.content or b"")
            if len(rows) >= _ROWS_AT_ONCE or size >= _BYTES_AT_ONCE:
                yield encode_rows(self._draft.id, rows)
                rows, size = [], 0
        self._check_whole()
        if self._quota is not None:
            await self._quota.take(self._rows, self._tokens)
        if rows:
            yield encode_rows(self._draft.id, rows)
        self._draft.model = self._models.pop() if len(self._models) == 1 else None

    def _check_whole(self) -> None:
        """Check what only the whole file shows; raises ValidationFailed if anything is wrong with it."""
        self._note_repeated()
        if not self._rows and not self._wrong:
            self._note("empty_file", "There are no requests in the file.", None, None)
        if self._wrong or self._rows == self._draft.refused_rows:
            self._wrong += self._refused
            self._told += self._refusals
            raise ValidationFailed("The file cannot be used.")

    @property
    def errors(self) -> list[Error]:
        """The first problems in the order of their lines, and how many more there are."""
        told = sorted(self._told, key=lambda error: error["line"] or 0)[:MOST_TOLD]
        more = self._wrong - len(told)
        if more > 0:
            told.append(error_of("validation_failed", f"There are {more} more problems.", None, None))
        return told

    def _read(self, line: Line) -> Row | None:
        self._rows += 1
        if self._rows > MAX_ROWS:
            if self._rows == MAX_ROWS + 1:
                self._note("too_many_rows", f"A batch has at most {MAX_ROWS:,} requests.", None, line.number)
            return None
        if line.content is None:
            message = f"The line is longer than {MAX_LINE_BYTES >> 20} MiB."
            self._note("validation_failed", message, None, line.number)
            return None
        try:
            given = parse_json_object(line.content)
        except ValidationFailed as error:
            return self._refuse_unread(line.number, line.content, error)
        problems = list(self._problems_of(given))
        custom_id = given.get("custom_id")
        if isinstance(custom_id, str):
            self._ids.take([custom_id], [line.number])
        if problems:
            self._note_all(ValidationFailed(problems[0].message, problems=problems), line.number)
            return None
        try:
            return self._plan(line.number, given)
        except HeadraceError as error:
            return self._refuse(line.number, given["custom_id"], error)

    def _refuse_unread(self, number: int, content: bytes, error: ValidationFailed) -> Row | None:
        """The row of a line that cannot be kept as it is, if it can be told by its custom id; else it is noted."""
        given = parse_leniently(content)
        custom_id = str(given.get("custom_id"))
        if next(self._problems_of(given), None) is None and storable_text(custom_id) == custom_id:
            self._ids.take([custom_id], [number])
            return self._refuse(number, custom_id, _of_body(error))
        self._note_all(error, number)
        return None

    def _refuse(self, number: int, custom_id: str, error: HeadraceError) -> Row:
        """The row of a request that will not run; the others of the file do."""
        self._draft.refused_rows += 1
        for problem in error.problems or (FieldProblem(error.param or "", error.detail),):
            self._refused += 1
            if len(self._refusals) < MOST_TOLD:
                self._refusals.append(error_of(error.code, problem.message, problem.field or None, number))
        return refused_row(self._rows, number, custom_id, error)

    def _problems_of(self, given: JsonObject) -> Iterator[FieldProblem]:
        custom_id = given.get("custom_id")
        if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MAX_ID_CHARS:
            yield FieldProblem("custom_id", f"Send a string of 1 to {MAX_ID_CHARS} characters.")
        if given.get("method") != "POST":
            yield FieldProblem("method", "The method must be POST.")
        if given.get("url") != self._draft.endpoint:
            yield FieldProblem("url", f"The url must be the batch's endpoint, {self._draft.endpoint}.")
        if not isinstance(given.get("body"), dict):
            yield FieldProblem("body", "Send a JSON object.")

    def _plan(self, number: int, given: JsonObject) -> Row:
        """The row of a request, as a job of its own would be planned; raises HeadraceError."""
        if unknown := given.keys() - _KEYS:
            name = shorten(min(unknown))
            raise refused([FieldProblem(name, "There is no such field of a line.")])
        body = given["body"]
        if self._draft.endpoint == EMBEDDINGS:
            job = plan_embedding(
                embedding_request(body, EMBEDDING_LINE_TABLE),
                self._caller,
                self._catalog,
                None,
                self._router,
                expires_in=self._draft.expires_in,
            )
        else:
            request = read_request(body, Surface.LINE, self._own)
            job = plan_job(request, self._caller, self._catalog, None, self._router)
        self._models.add(job["model"])
        if self._quota is not None:
            self._tokens += worst_tokens(job["request"])
        place = self._place_of(job)
        return Row(
            number=self._rows,
            line=number,
            custom_id=given["custom_id"],
            route=place,
            request=job["request"],
            reserved_usd=job["reserved_usd"],
            digest=_digest(place, job["request"]) if self._draft.dedupe else None,
        )

    def _place_of(self, job: JsonObject) -> int:
        """The place of a job's way among those of the batch; equal ways share one, with the first's reasons."""
        way = (job["model"], tuple(job["route"]))
        place = self._routes.get(way)
        if place is None:
            place = self._routes[way] = len(self._routes)
            names = ("model", "route", "routing", "tier", "queue")
            self._draft.routes.append({name: job[name] for name in names})
        return place

    def _note_repeated(self) -> None:
        repeated = Problems()
        self._ids.note_repeated(repeated)
        if repeated:
            error = repeated.as_error()
            self._wrong += repeated.total - len(error.problems)
            for problem in error.problems:
                self._note("duplicate_custom_id", problem.message, "custom_id", problem.line)

    def _note_all(self, error: ValidationFailed, line: int) -> None:
        for problem in error.problems:
            self._note(error.code, _of_line(problem.message), problem.field or None, line)

    def _note(self, code: str, message: str, param: str | None, line: int | None) -> None:
        self._wrong += 1
        if len(self._told) < 2 * MOST_TOLD:
            self._told.append(error_of(code, message, param, line))


def error_of(code: str, message: str, param: str | None, line: int | None) -> Error:
    """An entry of a batch's ``errors``."""
    return {"code": code, "message": message, "param": param, "line": line}


def _of_body(error: ValidationFailed) -> ValidationFailed:
    """What is wrong with a line as what is wrong with the body in it."""
    problems = [
        FieldProblem(problem.field.removeprefix("body."), _of_line(problem.message)) for problem in error.problems
    ]
    param = None if error.param is None else error.param.removeprefix("body.")
    return ValidationFailed(_of_line(error.detail), param=param, problems=problems)


def _of_line(message: str) -> str:
    """A sentence about a request's body as one about a line."""
    return message.replace("The request body", "The line").replace("line 1, column", "column")


def _digest(place: int, request: JsonObject) -> bytes:
    document = orjson.dumps([place, request], option=orjson.OPT_SORT_KEYS, default=str)
    return blake2b(document, digest_size=16).digest()
