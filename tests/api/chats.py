"""Chat completions in an app of this process, read byte by byte, with a worker moved by hand."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.types import Message

from models.ids import JOB, from_wire
from models.texts import TextSender
from tests.api.acting import Json, Tenant, Worker, until

CHAT = "/v1/chat/completions"


def body(**more: object) -> Json:
    """A chat completion to ask for."""
    return {"model": "alone", "messages": [{"role": "user", "content": "hi"}]} | more


@dataclass
class Reading:
    """A response as it comes: what was sent of it so far."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    ended: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    job: Json = field(default_factory=dict)

    async def take(self, message: Message) -> None:
        """Note what the app sends."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.content += message.get("body", b"")
            self.ended = not message.get("more_body", False)

    def hang_up(self) -> None:
        """Close the connection."""
        self.gone.set()

    async def until(self, part: bytes) -> None:
        """Wait until something has come."""

        async def came() -> bool:
            return part in self.content

        await until(came)

    async def until_ended(self) -> None:
        """Wait for the end of the response."""

        async def ended() -> bool:
            return self.ended

        await until(ended)

    def chunks(self) -> list[Json]:
        """The events, as JSON, but for ``[DONE]``."""
        lines = [line[6:] for line in self.content.decode().split("\n") if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]


@contextlib.asynccontextmanager
async def asking(
    app: FastAPI,
    tenant: Tenant,
    client: httpx.AsyncClient,
    path: str = CHAT,
    *,
    headers: Json | None = None,
    **more: Any,
) -> AsyncIterator[Reading]:
    """Ask for a chat completion and go on while it is answered; ``job`` is the one that it waits for."""
    reading, sent = Reading(), False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await reading.gone.wait()
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": json.dumps(body(**more)).encode(), "more_body": False}

    given = {"authorization": f"Bearer {tenant.key}", "content-type": "application/json", **(headers or {})}
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    before = (await client.get("/v1/jobs")).json()["first_id"]

    async def submitted() -> bool:
        listed: list[Json] = (await client.get("/v1/jobs")).json()["data"]
        reading.job = listed[0] if listed else {}
        return bool(listed) and listed[0]["id"] != before

    answering = asyncio.create_task(app(scope, receive, reading.take))
    try:
        if before is None or not (headers or {}).get("idempotency-key"):
            await until(submitted)
        yield reading
    finally:
        reading.hang_up()
        await answering


@dataclass
class Speaker:
    """A worker that has claimed a job and says its answer piece by piece."""

    worker: Worker
    sender: TextSender
    claimed: Json

    def say(self, text: str) -> None:
        """Send a piece of the answer."""
        self._write(text)

    def __post_init__(self) -> None:
        channel, attempt = self.claimed["request"]["stream"], self.claimed["attempt_id"].hex
        self._write = self.sender.writer(channel, self.claimed["job_id"].hex, attempt, "alone")

    async def end(self, job: Json, text: str, finish_reason: str = "stop", **columns: Any) -> None:
        """End the job with its whole answer."""
        result = {"text": text, "finish_reason": finish_reason, "model": "alone"}
        await self.worker.finish(self.claimed, llm="alone", result=result, **columns)
        self.worker.announce(job)


@contextlib.asynccontextmanager
async def speaking(worker: Worker, redis_url: str, job: Json) -> AsyncIterator[Speaker]:
    """A worker that has taken a job whose answer is streamed."""
    assert from_wire(JOB, job["id"])
    sender = TextSender(redis_url)
    try:
        yield Speaker(worker, sender, await worker.claim(job))
    finally:
        await sender.close()
