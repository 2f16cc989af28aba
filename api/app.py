"""The front door: records intent, reads state; it never talks to Celery and never calls an LLM."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

from api.access import parse_networks
from api.auth import Authenticator
from api.batches.clerks import Clerks
from api.batches.turns import Uploads
from api.batches.validators import Validators
from api.counters import Counters
from api.deps import Services
from api.edge import Edge, Traffic
from api.errors import install_error_handlers
from api.health import Health
from api.hints import Paths
from api.openapi import DocumentedApp
from api.pools import Pools, split
from api.ratelimits import RateLimiter
from api.routes import (
    batch_results,
    batches,
    budgets,
    docs,
    files,
    health,
    jobs,
    models,
    openai,
    openai_batches,
    uploads,
    usage,
)
from api.settings import ApiSettings
from api.shares import Control, Reads, cancels
from api.submission import Submitter
from api.textfeeds import TextFeeds
from api.vitals import VitalSigns
from api.waiting import Waiters
from models.catalog import SHIPPED, load_catalog, read_catalog, select_optional
from models.pauses import keep_pauses_short
from models.settings import read_settings
from models.shared import Shared
from models.startup import ending_in_one_line, require_stores
from models.telemetry import configure_logging
from models.wakeups import Wakeups

_ROUTES = (
    jobs,
    health,
    budgets,
    usage,
    models,
    files,
    openai,
    batch_results,
    openai_batches,
    batches,
    uploads,
)

_NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
}
"""FastAPI's own instrumentation, which asks on every request whether someone has configured it."""


def create_app(settings: ApiSettings | None = None) -> FastAPI:
    """The ASGI app; its settings come from the environment when none are given, and then the process ends with one
    line where they cannot be used."""
    settings = settings or _settings_of_environment()
    traffic = Traffic()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        configure_logging()
        async with _services(settings, traffic) as services:
            app.state.services = services
            keep_pauses_short()
            yield

    app = DocumentedApp(
        title="Headrace",
        description="Asynchronous LLM jobs: submit one, read its state until it has finished.",
        version=version("headrace"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=_NO_TELEMETRY,
    )
    app.add_middleware(Edge, traffic=traffic)
    install_error_handlers(app)
    jobs.install_submission(app)
    for module in _ROUTES:
        app.include_router(module.router)
    docs.install_docs(app)
    included = [route for module in (*_ROUTES, docs) for route in module.router.routes]
    app.state.paths = Paths([*app.router.routes, *included])
    return app


def _settings_of_environment() -> ApiSettings:
    with ending_in_one_line():
        settings = read_settings(ApiSettings)
        select_optional(read_catalog(settings.catalog), settings.optional_llms)
        require_stores(settings)
        return settings


async def _end(tasks: Collection["asyncio.Task[None]"]) -> None:
    """Cancel tasks until they have ended: a client that is just connecting may swallow a cancellation."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=1.0)


@contextlib.asynccontextmanager
async def _services(settings: ApiSettings, traffic: Traffic) -> AsyncIterator[Services]:
    catalog = load_catalog(settings.catalog, settings.optional_llms)
    pools = Pools.create(settings.database_url, settings.api_pool_size, settings.api_read_timeout_s)
    sizes = split(settings.api_pool_size)
    wakeups = Wakeups(settings.redis_url)
    waiters = Waiters(pools.light, wakeups)
    feeds = TextFeeds(settings.redis_url)
    clerks = Clerks()
    shared = Shared(settings.redis_url)
    vitals = VitalSigns(pools.light, shared, catalog)
    counters = Counters(settings.redis_url, timeout_s=settings.rate_limit_timeout_s)
    submitter = Submitter(
        pools.submit, wakeups, group_limit=settings.submit_group_limit, retry_s=settings.submit_retry_s
    )
    limiter = RateLimiter(catalog.plans, counters)
    validators = Validators(settings, pools.files, wakeups, catalog, vitals, limiter)
    duties = (waiters.listen(), waiters.sweep(), vitals.watch(), feeds.listen(), validators.watch())
    background = [asyncio.create_task(duty) for duty in duties]
    try:
        yield Services(
            settings=settings,
            pools=pools,
            reads=Reads(pools.reads, sizes["reads"]),
            control=Control(sizes["control"]),
            cancels=cancels(),
            wakeups=wakeups,
            catalog=catalog,
            catalog_changed_at=int((settings.catalog or SHIPPED).stat().st_mtime),
            authenticator=Authenticator(pools.submit, cache_s=settings.api_key_cache_s),
            limiter=limiter,
            submitter=submitter,
            waiters=waiters,
            feeds=feeds,
            validators=validators,
            uploads=Uploads(),
            clerks=clerks,
            vitals=vitals,
            health=Health(pools.light, wakeups, catalog, vitals, pools.renew),
            metrics_networks=parse_networks(settings.metrics_allow),
            traffic=traffic,
        )
    finally:
        await _end(background)
        await clerks.close()
        await validators.close()
        await shared.close()
        await counters.close()
        await wakeups.close()
        await pools.renew()
