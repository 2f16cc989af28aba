"""What the front door knows of the LLMs, looked up in the background: routing, health and metrics read it."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from time import monotonic

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from models.breakers import SharedBreakers, rules_of
from models.catalog import Catalog
from models.circuit import CircuitState, Look
from models.database import describe, read_all
from models.performance import SELECT_PERFORMANCE, performance_params, to_vitals
from models.routing import Router, Vitals
from models.shared import Shared, SharedAway

BREAKERS_EVERY_S = 1.0
PERFORMANCE_EVERY_S = 5.0

log = structlog.get_logger()


class VitalSigns:
    """The LLMs' breakers, a second old at most, their performance, five seconds old at most, and a router that
    goes by them. What cannot be looked up stays as it was; breakers count as closed when Redis is away."""

    def __init__(self, engine: AsyncEngine, shared: Shared, catalog: Catalog) -> None:
        self.router = Router(catalog)
        self.breakers: Mapping[str, Look] | None = None
        self.llms: Mapping[str, Vitals] = {}
        self._engine = engine
        self._catalog = catalog
        self._store = SharedBreakers(shared, rules_of(catalog.breaker))
        self._performance_due = 0.0

    async def watch(self) -> None:
        """Look again and again, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(BREAKERS_EVERY_S)

    async def look(self) -> None:
        """Look once; performance only when it is due."""
        self.breakers = await self._look_at_breakers()
        measured = self.llms
        if monotonic() >= self._performance_due:
            measured = await self._look_at_performance()
        vitals = {
            name: replace(measured.get(name, Vitals()), breaker_open=self._is_open(name)) for name in self._catalog.llms
        }
        if vitals != self.llms:
            self.llms = vitals
            self.router = Router(self._catalog, vitals)

    def _is_open(self, llm: str) -> bool:
        return self.breakers is not None and self.breakers[llm].state is CircuitState.OPEN

    async def _look_at_breakers(self) -> Mapping[str, Look] | None:
        names = list(self._catalog.llms)
        looks = await asyncio.gather(*map(self._store.peek, names), return_exceptions=True)
        known = {}
        for name, look in zip(names, looks, strict=True):
            if isinstance(look, SharedAway):
                return None
            if isinstance(look, BaseException):
                raise look
            known[name] = look
        return known

    async def _look_at_performance(self) -> Mapping[str, Vitals]:
        try:
            rows = await read_all(self._engine, SELECT_PERFORMANCE, performance_params(datetime.now(UTC)))
        except (SQLAlchemyError, OSError) as error:
            log.warning("vitals.postgres_away", error=describe(error))
            return self.llms
        self._performance_due = monotonic() + PERFORMANCE_EVERY_S
        return {row["llm"]: to_vitals(row) for row in rows}
