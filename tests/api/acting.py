"""Those who act in the API's tests: tenants, their clients, and a worker moved by hand."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from models.account import create_key, create_tenant
from models.attempt import CLAIM, FINISH
from models.database import dump_json, fetch_all, fetch_one
from models.ids import JOB, from_wire, new_id
from models.process import DEREGISTER, REGISTER
from models.wakeups import FINISHED, Wakeups

Json = dict[str, Any]  # Any: JSON


@dataclass(frozen=True)
class Tenant:
    """A tenant and its key."""

    id: UUID
    key: str


@dataclass
class Clock:
    """A clock that tests set, in unix milliseconds."""

    now_ms: int = 1_795_000_000_000

    def __call__(self) -> int:
        return self.now_ms


async def new_tenant(engine: AsyncEngine) -> Tenant:
    """A tenant of its own."""
    tenant_id = await create_tenant(engine, f"tenant-{new_id().hex}")
    return Tenant(tenant_id, await create_key(engine, tenant_id, "test"))


@contextlib.asynccontextmanager
async def serving(app: FastAPI, tenant: Tenant) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app in this process, with a tenant's key."""
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://headrace",
        headers={"authorization": f"Bearer {tenant.key}"},
        timeout=70,
    ) as client:
        yield client


async def submit(client: httpx.AsyncClient, **fields: object) -> Json:
    """Submit a job and return its resource; fails the test when it is refused."""
    response = await client.post("/v1/jobs", json={"prompt": "Say hello."} | fields)
    assert response.status_code == 202, response.text
    job: Json = response.json()
    return job


async def until(condition: Callable[[], Awaitable[object]], timeout_s: float = 10.0) -> None:
    """Wait for a condition; fails the test when it does not come true in time."""
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 - what is waited for is elsewhere
            await asyncio.sleep(0.02)


def uuid_of(job: Json) -> UUID:
    """The UUID in a job's id."""
    job_id = from_wire(JOB, job["id"])
    assert job_id is not None
    return job_id


def code_of(response: httpx.Response) -> str:
    """The code of a problem document, whose shape is checked on the way."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem = response.json()
    assert problem["status"] == response.status_code
    assert all(problem[member] for member in ("type", "title", "detail"))
    assert problem["error"]["code"] == problem["code"]
    assert problem["error"]["message"] == problem["detail"]
    assert set(problem["error"]) == {"message", "type", "code", "param"}
    return str(problem["code"])


class Worker:
    """Claims and finishes jobs with the statements that workers use."""

    def __init__(self, engine: AsyncEngine, wakeups: Wakeups) -> None:
        self._engine = engine
        self._wakeups = wakeups
        self.id = new_id()

    async def register(self) -> None:
        """Take a lease."""
        params = {"id": self.id, "role": "worker", "name": "by hand", "queues": ["small"], "capacity": 4}
        await fetch_all(self._engine, REGISTER, params | {"lease_s": 600})

    async def deregister(self) -> None:
        """Give the lease back."""
        await fetch_all(self._engine, DEREGISTER, {"id": self.id})

    async def claim(self, job: Json) -> Json:
        """Take a job; returns what the claim says."""
        rows = dump_json([{"job_id": uuid_of(job), "attempt_id": new_id()}])
        params = {"rows": rows, "providers": '{"tiny": "mock"}', "worker_id": self.id}
        claimed = await fetch_one(self._engine, CLAIM, params)
        assert claimed is not None
        return dict(claimed)

    async def finish(self, claimed: Json, status: str = "completed", **columns: object) -> None:
        """End a claimed job's attempt, and the job."""
        report = {
            "attempt_id": claimed["attempt_id"],
            "job_id": claimed["job_id"],
            "tenant_id": claimed["tenant_id"],
            "llm": "tiny",
            "outcome": "failed" if status == "queued" else status,
            "duration_ms": 812,
            "time_to_first_token_ms": 95,
            "input_tokens": 12,
            "output_tokens": 40,
            "input_price": "1",
            "output_price": "2",
            "cost_usd": "0.000092",
            "status": status,
            "result": {"text": "Hello.", "finish_reason": "stop", "model": "tiny"} if status == "completed" else None,
            "error": None,
            "retry_in_s": 0,
            "route_index": 0,
            "llm_failures": 0,
            "tier": "small",
            "queue": "small",
        }
        await fetch_all(self._engine, FINISH, {"rows": dump_json([report | columns]), "writer": new_id()})

    def announce(self, job: Json) -> None:
        """Say that a job has finished."""
        self._wakeups.announce(FINISHED, [uuid_of(job).hex])

    async def complete(self, job: Json) -> None:
        """Take a job, answer it, and say so."""
        await self.finish(await self.claim(job))
        self.announce(job)
