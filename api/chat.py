"""Answering while the caller waits: a job's end as OpenAI's clients read it, whole or as a stream of events.

Text is handed on as it comes (:mod:`api.textfeeds`). That is for speed only: when the job has ended, its answer is read
from Postgres, and what has not been sent of it yet is sent.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any
from uuid import UUID

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.auth import Caller
from api.deps import Services
from api.errors import openai_type, problem_response
from api.jobaccess import ask_to_cancel, read_job
from api.jobview import Row, is_finished, status_url
from api.textfeeds import Feed
from api.waiting import disconnected, wait_or_disconnect
from models.database import read_one
from models.errors import STATUS_OF_FAILURE, FailureCode
from models.ids import JOB, to_wire
from models.lifecycle import JobStatus
from models.results import SELECT_ANSWER

JsonObject = dict[str, Any]  # Any: JSON
_ONCE = {"x-should-retry": "false"}
"""The job was tried as often as it may be: the client's own retries would only pay for more."""

_REREAD_S = 0.1
_BEGUN_ANEW = "The answer was begun anew after a part of it had been sent."


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why there is no answer, as an HTTP error."""

    status: int
    code: str
    message: str

    def response(self, headers: Mapping[str, str]) -> Response:
        """The error as a whole response."""
        title = "The job has not finished yet" if self.code == "wait_timeout" else "The job has no answer"
        return problem_response(self.status, self.code, title, self.message, headers={**headers, **_ONCE})

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
    """A caller that waits for a job; who hangs up cancels the job that only they asked for (``own``)."""

    services: Services
    caller: Caller
    job_id: UUID
    own: bool
    headers: Mapping[str, str]

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
        wait_s = self.services.settings.sync_wait_s
        return Trouble(
            504, "wait_timeout", f"{job_id} has not finished within {wait_s:g} s; it goes on: {status_url(job_id)}"
        )

    async def answer(self, request: Request) -> Response:
        """The finished job's answer in one piece, or why there is none."""
        with self.services.waiters.watch(self.job_id) as finished:
            row = await self.read()
            if not is_finished(row):
                if await wait_or_disconnect(request, finished, self.services.settings.sync_wait_s):
                    await self.give_up()
                    return Response(status_code=499)  # nobody reads it
                row = await self.read()
        trouble = trouble_of(row) if is_finished(row) else self.timed_out
        if trouble is not None:
            return trouble.response(self.headers)
        params = {"id": self.job_id, "tenant_id": self.caller.tenant_id}
        made = await read_one(self.services.pools.light, SELECT_ANSWER, params)
        body = made["body"] if made is not None else "null"
        return Response(body, 200, dict(self.headers), "application/json")


class Events:
    """The events of one stream; ``sent`` is the text that they have given out."""

    def __init__(self, row: Row, *, include_usage: bool) -> None:
        self._id = f"chatcmpl-{row['id'].hex}"
        self._created = int(row["created_at"].timestamp())
        self._include_usage = include_usage
        self.sent: list[str] = []

    def text(self, text: str, model: str | None) -> bytes:
        """A piece of the answer; the first one says who speaks."""
        opening = b"" if self.sent else self._chunk({"role": "assistant", "content": ""}, model)
        self.sent.append(text)
        return opening + (self._chunk({"content": text}, model) if text else b"")

    def end(self, row: Row) -> bytes:
        """The rest of a completed job's answer and the end of the stream."""
        result, sent = row["result"], "".join(self.sent)
        if not result["text"].startswith(sent):
            return self.error(Trouble(502, "connection", _BEGUN_ANEW))
        events = self.text(result["text"][len(sent) :], result["model"])
        events += self._chunk({}, result["model"], result["finish_reason"])
        if self._include_usage:
            used, made = row["input_tokens"], row["output_tokens"]
            usage = {"prompt_tokens": used, "completion_tokens": made, "total_tokens": used + made}
            events += _event(self._document([], result["model"]) | {"usage": usage})
        return events + b"data: [DONE]\n\n"

    def error(self, trouble: Trouble) -> bytes:
        """An error, which ends the stream."""
        return _event({"error": trouble.as_wire()})

    def _chunk(self, delta: JsonObject, model: str | None, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _event(self._document([choice], model) | ({"usage": None} if self._include_usage else {}))

    def _document(self, choices: list[JsonObject], model: str | None) -> JsonObject:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": model,
            "choices": choices,
        }


class ChatStream(Response):
    """A job's answer as it comes. Until there is some text, an error is a response of its own."""

    media_type = "text/event-stream"

    def __init__(self, waiting: Waiting, feed: Feed, *, include_usage: bool) -> None:
        super().__init__(None, 200, {**waiting.headers, "cache-control": "no-cache", "x-accel-buffering": "no"})
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
        finally:
            gone.cancel()
            services.feeds.close(self._feed)
        if isinstance(end, Trouble) and not self._begun:
            await end.response(self._waiting.headers)(scope, receive, send)
        elif end is not None:
            await self._send(send, events.error(end) if isinstance(end, Trouble) else end, more=False)

    async def _follow(
        self,
        row: Row,
        events: Events,
        finished: "asyncio.Future[None]",
        gone: "asyncio.Task[None]",
        send: Send,
    ) -> bytes | Trouble | None:
        """Send text as it comes; what there is to send last, or None when nobody listens any more."""
        wait_s = self._waiting.services.settings.sync_wait_s
        deadline = monotonic() + wait_s
        while not is_finished(row):
            await self._something(finished, gone, deadline - monotonic())
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
                deadline = monotonic() + wait_s
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


def _event(document: JsonObject) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"
