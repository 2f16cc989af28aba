"""What an attempt tells the breaker of its LLM."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from models.catalog import load_catalog
from models.errors import FailureCode, JobFailure
from workers.breaker import Health
from workers.execution import Attempt, Claim
from workers.providers.base import ProviderError

LLM = "smollm2-135m"
REQUEST: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
CLAIM = Claim(UUID(int=1), UUID(int=2), UUID(int=3), (LLM,), 0, 0, REQUEST, 60.0)


class Gate:
    """A gate that is open, and remembers what it was told."""

    def __init__(self) -> None:
        self.entry = SimpleNamespace(health=None)
        self.breakers = SimpleNamespace(is_open=lambda _llm: False)

    @asynccontextmanager
    async def enter(self, _llm: str) -> AsyncIterator[SimpleNamespace]:
        yield self.entry


class Failing:
    """Every provider, which cannot answer."""

    checker = None

    def __init__(self, error: ProviderError) -> None:
        self._error = error

    def get(self, _name: str) -> "Failing":
        return self

    async def generate(self, *_: object) -> None:
        raise self._error


@pytest.mark.parametrize(("here", "told"), [(False, Health.UNWELL), (True, Health.UNKNOWN)])
def test_what_this_process_lacks_is_not_held_against_the_llm(here: bool, told: Health) -> None:
    gate = Gate()
    error = ProviderError(JobFailure(FailureCode.OVERLOADED, "no memory", 5.0), here=here)
    attempt = Attempt(CLAIM, load_catalog(), Failing(error), gate)  # type: ignore[arg-type]  # stand-ins
    report = asyncio.run(attempt.run())
    assert report.ending.failure is not None
    assert report.ending.failure.code is FailureCode.OVERLOADED
    assert gate.entry.health is told
