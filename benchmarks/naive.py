"""The design that Headrace is compared to: FastAPI, one SQLAlchemy INSERT per request, Celery's ``delay()``."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

from celery import Celery
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

celery = Celery("naive", broker=os.environ["HEADRACE_REDIS_URL"])
celery.conf.update(task_ignore_result=True, broker_transport_options={"global_keyprefix": "naive:"})


class Base(DeclarativeBase):
    """Parent of the table."""


class NaiveJob(Base):
    """A job as a first draft would have it."""

    __tablename__ = "naive_jobs"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    status: Mapped[str] = mapped_column(default="queued")
    request: Mapped[dict[str, Any]] = mapped_column(JSONB)


class Submission(BaseModel):
    """The part of a job that both designs take."""

    prompt: str
    model: str = "auto"
    max_tokens: int = 256


@celery.task(name="naive.run")
def run(job_id: str) -> None:
    """What a worker would do."""


engine = create_async_engine(os.environ["HEADRACE_DATABASE_URL"], pool_size=32)
sessions = async_sessionmaker(engine, expire_on_commit=False)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Make the table."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.post("/v1/jobs", status_code=202)
async def submit(body: Submission) -> dict[str, str]:
    """Record the job, then publish it."""
    job = NaiveJob(request=body.model_dump())
    async with sessions() as session:
        session.add(job)
        await session.commit()
    run.delay(str(job.id))
    return {"id": str(job.id), "status": job.status}


@app.get("/livez")
async def livez() -> dict[str, str]:
    """For the benchmark to wait on."""
    await asyncio.sleep(0)
    return {"status": "ok"}
