"""The API in this process, over the test process's own servers; each test has its own tenant.

The database and the Valkey are shared by the tests of one test process, which costs them nothing: they see
only their own tenant's jobs.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.app import create_app
from api.local.postgres import EmbeddedPostgres
from api.local.valkey import EmbeddedValkey
from api.settings import ApiSettings
from models.database import create_engine, fetch_all, migrate
from models.wakeups import Wakeups
from tests.api.acting import Clock, Tenant, Worker, new_tenant, serving

CATALOG = Path(__file__).with_name("catalog.toml")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def api_database_url(postgres: EmbeddedPostgres) -> str:
    """The URL of the database that the API's tests of this test process share."""
    with psycopg.connect(postgres.url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE DATABASE api")
    url = f"{postgres.url.rsplit('/', 1)[0]}/api"
    migrate(url)
    return url


@pytest.fixture(scope="session")
def api_redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the Valkey that the API's tests of this test process share."""
    server = EmbeddedValkey(tmp_path_factory.mktemp("valkey"))
    yield server.start()
    server.stop()


@pytest.fixture
def settings(api_database_url: str, api_redis_url: str) -> ApiSettings:
    return ApiSettings(
        database_url=api_database_url,
        redis_url=api_redis_url,
        catalog=CATALOG,
        max_body_bytes=64 * 1024,
        api_key_cache_s=0.3,
        submit_retry_s=1.0,
    )


@pytest.fixture
def clock() -> Clock:
    """A clock for what takes one."""
    return Clock()


@pytest.fixture
async def engine(api_database_url: str) -> AsyncIterator[AsyncEngine]:
    """A way into the API's database that is not the API's own."""
    engine = create_engine(api_database_url, name="tests", pool_size=2)
    yield engine
    await engine.dispose()


@pytest.fixture
async def app(settings: ApiSettings) -> AsyncIterator[FastAPI]:
    """The app, with its lifespan begun."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def tenant(engine: AsyncEngine) -> AsyncIterator[Tenant]:
    """A tenant that nobody else has heard of; its batches end with the test, so that no other test feeds them."""
    tenant = await new_tenant(engine)
    yield tenant
    await fetch_all(engine, text("UPDATE batches SET status = 'cancelled' WHERE tenant_id = :id"), {"id": tenant.id})


@pytest.fixture
async def client(app: FastAPI, tenant: Tenant) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app with the tenant's key."""
    async with serving(app, tenant) as client:
        yield client


@pytest.fixture
async def stranger(app: FastAPI, engine: AsyncEngine) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app with another tenant's key."""
    async with serving(app, await new_tenant(engine)) as client:
        yield client


@pytest.fixture
async def worker(engine: AsyncEngine, api_redis_url: str) -> AsyncIterator[Worker]:
    """Does to jobs, by hand, what a worker process does."""
    wakeups = Wakeups(api_redis_url)
    worker = Worker(engine, wakeups)
    await worker.register()
    yield worker
    await worker.deregister()
    await wakeups.close()
