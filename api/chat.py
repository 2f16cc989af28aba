"""Answering while the caller waits: a job's end as OpenAI's clients read it, whole or as a stream of events.

Text is handed on as it comes (:mod:`api.textfeeds`). That is for speed only: when the job has ended, its answer is read
from Postgres, and what has not been sent of it yet is sent.

A stream that has nothing to say for a while sends a comment, so that no proxy takes it for dead. The status line goes
out with the first byte: an error before it is an ordinary response, an error after it is an event.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from time import monotonic
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.auth import Caller
from api.deps import Services
from api.errors import openai_type, problem_response
from api.jobaccess import ask_to_cancel, read_job
from api.jobview import Row, is_finished, status_url, usage_of
from api.responses import one_line
from api.textfeeds import Feed
from api.waiting import disconnected, wait_or_disconnect
from models.database import read_one
from models.errors import STATUS_OF_FAILURE, FailureCode, NotFound
from models.ids import JOB, to_wire
from models.lifecycle import JobStatus
from models.results import SELECT_ANSWER

JsonObject = dict[str, Any]  # Any: JSON
_ONCE = {"x-should-retry": "false"}
"""The job was tried as often as it may be: the client's own retries would only pay for more."""

HEARTBEAT = b": keep-alive\n"
"""A comment, which clients skip. An empty line after it would end an event without data, which some clients parse as
JSON: openai-go before its pull request 621 fails there, and openai-python where events have ids (its issue 2722)."""

_REREAD_S = 0.1
_BEGUN_ANEW = "The answer was begun anew after a part of it had been sent."

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why there is no answer, as an HTTP error."""

    status: int
    code: str
    message: str
    headers: Mapping[str, str] = field(default_factory=lambda: _ONCE)

    def response(self, headers: Mapping[str, str]) -> Response:
        """The error as a whole response."""
        title = "The job has not finished yet" if self.code == "wait_timeout" else "The job has no answer"
        return problem_response(self.status, self.code, title, self.message, headers={**headers, **self.headers})

    def as_wire(self) -> JsonObject:
        """The error in the form of OpenAI's."""
        return {"message": self.message, "type": openai_type(self.status), "code": self.code, "param": None}


def trouble_of(row: Row) -> Trouble | None:
    """Why a finished job has no answer; None when it has."""
    match JobStatus(row["status"]):
        case JobStatus.COMPLETED:
            return None
        case JobStatus.CANCELLED:
            return Trouble(409, "job_cancelled", "The job was cancelled.")
    error = row["error"] or {"code": "internal", "message": "the job failed"}
    known = error["code"] in FailureCode.__members__.values()
    return Trouble(STATUS_OF_FAILURE[FailureCode(error["code"])] if known else 500, error["code"], error["message"])


@dataclass(frozen=True, slots=True)
class Waiting:
    """A caller that waits ``wait_s`` for a job.

    ``own``: only this request asked for the job and none can ask for it again, so hanging up cancels it. ``again``: the
    same request, sent again, finds the same job.
    """

    services: Services
    caller: Caller
    job_id: UUID
    own: bool
    headers: Mapping[str, str]
    wait_s: float
    again: bool = False

    async def read(self) -> Row:
        """The job's row."""
        return await read_job(self.services, self.caller, self.job_id)

    async def give_up(self) -> None:
        """Cancel the job, for nobody wants its answer."""
        if self.own:
            await ask_to_cancel(self.services, self.caller, self.job_id)

    @property
    def timed_out(self) -> Trouble:
        """What to say when the wait is over before the job."""
        job_id = to_wire(JOB, self.job_id)
        message = f"{job_id} has not finished within {self.wait_s:g} s; it goes on: {status_url(job_id)}"
        if self.again:
            message += "; the same request with its Idempotency-Key waits on for it"
        headers = {
            "location": status_url(job_id),
            "retry-after": "1",
            "x-should-retry": "true" if self.again else "false",
        }
        return Trouble(504, "wait_timeout", message, headers)

    @property
    def lost_sight(self) -> Trouble:
        """What to say when Postgres is away in the middle of a stream."""
        job_id = to_wire(JOB, self.job_id)
        return Trouble(503, "unavailable", f"Postgres cannot be reached; {job_id} goes on: {status_url(job_id)}")

    async def answer(self, request: Request) -> Response:
        """The finished job's answer in one piece, or why there is none."""
        with self.services.waiters.watch(self.job_id) as finished:
            row = await self._read_answer()
            if not is_finished(row):
                if await wait_or_disconnect(request, finished, self.wait_s):
                    await self.give_up()
                    return Response(status_code=499)  # nobody reads it
                row = await self._read_answer()
        trouble = trouble_of(row) if is_finished(row) else self.timed_out
        if trouble is not None:
            return trouble.response(self.headers)
        return Response(row["body"], 200, dict(self.headers), "application/json")

    async def _read_answer(self) -> Row:
        params = {"id": self.job_id, "tenant_id": self.caller.tenant_id}
        row = await read_one(self.services.pools.light, SELECT_ANSWER, params)
        if row is None:
            raise NotFound("There is no such job.")
        return row


class Events:
    """The events of one stream; ``sent`` is the text that they have given out."""

    def __init__(self, row: Row, *, include_usage: bool) -> None:
        self._id = f"chatcmpl-{row['id'].hex}"
        self._created = int(row["created_at"].timestamp())
        self._include_usage = include_usage
        self._paused = False
        self.sent: list[str] = []

    def heartbeat(self) -> bytes:
        """A sign of life."""
        self._paused = True
        return HEARTBEAT

    def text(self, text: str, model: str | None) -> bytes:
        """A piece of the answer; the first one says who speaks.

        After a heartbeat comes a chunk that says nothing: who splits a stream at its empty lines and takes only what
        begins with ``data:`` loses no text.
        """
        opening = b""
        if not self.sent:
            opening = self._chunk({"role": "assistant", "content": "", "refusal": None}, model)
        elif self._paused:
            opening = self._chunk({"content": ""}, model)
        self._paused = False
        self.sent.append(text)
        return opening + (self._chunk({"content": text}, model) if text else b"")

    def end(self, row: Row) -> bytes:
        """The rest of a completed job's answer and the end of the stream."""
        result, sent = row["result"], "".join(self.sent)
        if not result["text"].startswith(sent):
            return _error_event(Trouble(502, "connection", _BEGUN_ANEW))
        events = self.text(result["text"][len(sent) :], result["model"])
        events += self._chunk({}, result["model"], result["finish_reason"])
        if self._include_usage:
            events += _event(self._document([], result["model"]) | {"usage": usage_of(row).as_openai()})
        return events + b"data: [DONE]\n\n"

    def _chunk(self, delta: JsonObject, model: str | None, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _event(self._document([choice], model) | ({"usage": None} if self._include_usage else {}))

    def _document(self, choices: list[JsonObject], model: str | None) -> JsonObject:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": model,
            "service_tier": "default",
            "system_fingerprint": None,
            "choices": choices,
        }


class ChatStream(Response):
    """A job's answer as it comes. Until the first byte was sent, an error is a response of its own."""

    media_type = "text/event-stream"

    def __init__(self, waiting: Waiting, feed: Feed, *, include_usage: bool) -> None:
        unbuffered = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
        super().__init__(None, 200, {**waiting.headers, **unbuffered})
        del self.headers["content-length"]
        self._waiting = waiting
        self._feed = feed
        self._include_usage = include_usage
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the job has ended, the wait is over or the caller hangs up."""
        services = self._waiting.services
        gone = asyncio.create_task(disconnected(receive))
        try:
            with services.waiters.watch(self._waiting.job_id) as finished:
                row = await self._waiting.read()
                events = Events(row, include_usage=self._include_usage)
                end = await self._follow(row, events, finished, gone, send)
        except (SQLAlchemyError, OSError) as error:
            if not self._begun:
                raise
            log.warning("chat.unavailable", error=str(error).partition("\n")[0])
            end = self._waiting.lost_sight
        finally:
            gone.cancel()
            services.feeds.close(self._feed)
        if isinstance(end, Trouble) and not self._begun:
            await end.response(self._waiting.headers)(scope, receive, send)
        elif end is not None:
            await self._send(send, _error_event(end) if isinstance(end, Trouble) else end, more=False)

    async def _follow(
        self,
        row: Row,
        events: Events,
        finished: "asyncio.Future[None]",
        gone: "asyncio.Task[None]",
        send: Send,
    ) -> bytes | Trouble | None:
        """Send text as it comes; what there is to send last, or None when nobody listens any more."""
        beat_s = self._waiting.services.settings.stream_heartbeat_s or inf
        last_text = last_byte = monotonic()
        while not is_finished(row):
            deadline, beat = last_text + self._waiting.wait_s, last_byte + beat_s
            await self._something(finished, gone, min(deadline, beat) - monotonic())
            if gone.done():
                await self._waiting.give_up()
                return None
            if finished.done():
                row = await self._reread(row)
            elif monotonic() >= deadline:
                return self._waiting.timed_out
            text = self._feed.take()
            if self._feed.broken:
                await self._waiting.give_up()
                return Trouble(502, "connection", _BEGUN_ANEW)
            if text:
                await self._send(send, events.text(text, self._feed.llm), more=True)
                last_text = last_byte = monotonic()
            elif monotonic() >= beat and not is_finished(row):
                await self._send(send, events.heartbeat(), more=True)
                last_byte = monotonic()
        return trouble_of(row) or events.end(row)

    async def _something(self, finished: "asyncio.Future[None]", gone: "asyncio.Task[None]", wait_s: float) -> None:
        came = asyncio.create_task(self._feed.came.wait())
        try:
            await asyncio.wait(
                set[asyncio.Future[Any]]((came, finished, gone)),
                timeout=max(0.0, wait_s),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            came.cancel()

    async def _reread(self, before: Row) -> Row:
        row = await self._waiting.read()
        if not is_finished(row):
            await asyncio.sleep(_REREAD_S)
        return row

    async def _send(self, send: Send, body: bytes, *, more: bool) -> None:
        if not self._begun:
            self._begun = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": body, "more_body": more})


def _error_event(trouble: Trouble) -> bytes:
    """An error, which ends the stream: no ``[DONE]`` follows, so that nobody takes what came before for the answer."""
    return _event({"error": trouble.as_wire()})


def _event(document: JsonObject) -> bytes:
    return b"data: " + one_line(document) + b"\n\n"
