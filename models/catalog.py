"""The catalogue: which LLMs exist, in which tiers, served by which pools.

Read from a TOML file (``HEADRACE_CATALOG``, or the shipped ``catalog.toml``). Unknown keys are
errors, and every reference is checked when the file is loaded, so that a typing mistake stops a
process at its start and not a job in its middle.
"""

import tomllib
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.errors import ConfigurationError

SHIPPED = Path(__file__).with_name("catalog.toml")
RESERVED_QUEUES = frozenset({"webhooks", "documents", "maintenance"})
AUTO = "auto"

Pool = Literal["cpu", "gpu", "remote"]
Price = Decimal


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PoolConfig(_Entry):
    """A pool of worker processes: ``concurrency`` is the jobs one process keeps in flight."""

    concurrency: int = Field(default=4, ge=1, le=10_000)


class Tier(_Entry):
    """A class of LLMs, with the Celery queue that carries its jobs and the pool that runs them."""

    queue: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")
    pool: Pool


class MockBehaviour(_Entry):
    """What the ``mock`` provider does: times in seconds, rates from 0 to 1."""

    latency_s: float = Field(default=0.0, ge=0)
    output: str = "{prompt}"
    error: str | None = None
    error_rate: float = Field(default=1.0, ge=0, le=1)
    error_calls: int | None = Field(default=None, ge=0, description="Only a process's first calls fail.")
    retry_after_s: float | None = Field(default=None, ge=0)
    input_tokens: int = Field(default=10, ge=0)
    output_tokens: int = Field(default=10, ge=0)
    record: Path | None = Field(default=None, description="Append each call to this file, for fault tests.")


class LLM(_Entry):
    """One language model as the catalogue describes it; prices in USD per million tokens."""

    tier: str
    provider: Literal["llamacpp", "openai", "mock"]
    model: str | None = None
    source: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    context_window: int = Field(ge=1)
    quality: float = Field(default=0.5, ge=0, le=1)
    input_price: Price = Field(ge=0, max_digits=18, decimal_places=6)
    output_price: Price = Field(ge=0, max_digits=18, decimal_places=6)
    timeout_s: float = Field(default=300.0, gt=0)
    retries: int = Field(default=2, ge=0, le=20)
    threads: int | None = Field(default=None, ge=1, description="Compute threads of a local model.")
    fallbacks: tuple[str, ...] = ()
    mock: MockBehaviour = MockBehaviour()

    @model_validator(mode="after")
    def _provider_has_what_it_needs(self) -> "LLM":
        needed = {"llamacpp": "source", "openai": "base_url"}.get(self.provider)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"provider {self.provider!r} needs `{needed}`")
        return self


class Catalog(_Entry):
    """Every pool, tier and LLM, with their references checked."""

    default: str | None = None
    pools: dict[Pool, PoolConfig] = {}
    tiers: dict[str, Tier]
    llms: dict[str, LLM] = Field(min_length=1)

    @model_validator(mode="after")
    def _references_exist(self) -> "Catalog":
        for name, tier in self.tiers.items():
            if name in self.llms or name == AUTO:
                raise ValueError(f"tiers.{name}: the name is taken by an LLM or reserved")
            if tier.queue in RESERVED_QUEUES:
                raise ValueError(f"tiers.{name}.queue: {tier.queue!r} is reserved")
        for name, llm in self.llms.items():
            if llm.tier not in self.tiers:
                raise ValueError(f"llms.{name}.tier: there is no tier {llm.tier!r}")
            unknown = [other for other in llm.fallbacks if other not in self.llms or other == name]
            if unknown:
                raise ValueError(f"llms.{name}.fallbacks: no such other LLM: {', '.join(unknown)}")
        if self.default is not None and self.default not in {*self.tiers, *self.llms}:
            raise ValueError(f"default: there is no tier or LLM {self.default!r}")
        return self

    @cached_property
    def queues(self) -> tuple[str, ...]:
        """Every queue that carries jobs, sorted."""
        return tuple(sorted({tier.queue for tier in self.tiers.values()}))

    @cached_property
    def pools_in_use(self) -> dict[Pool, PoolConfig]:
        """The pools that some tier names, with their settings."""
        names = sorted({tier.pool for tier in self.tiers.values()})
        return {name: self.pools.get(name, PoolConfig()) for name in names}

    def queues_of_pool(self, pool: str) -> list[str]:
        """The queues that a pool's workers consume, sorted."""
        return sorted({tier.queue for tier in self.tiers.values() if tier.pool == pool})

    def queue_of(self, llm: str) -> str:
        """The queue that carries the jobs of an LLM."""
        return self.tiers[self.llms[llm].tier].queue

    def llms_of_tier(self, tier: str) -> list[str]:
        """The names of a tier's LLMs, in the order of the file."""
        return [name for name, llm in self.llms.items() if llm.tier == tier]


def load_catalog(path: Path | None = None) -> Catalog:
    """Read and check a catalogue file, the shipped one by default.

    Raises ConfigurationError, naming the file and the key.
    """
    source = path or SHIPPED
    try:
        return Catalog.model_validate(tomllib.loads(source.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigurationError(f"cannot read the catalogue {source}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{source} is not valid TOML: {error}") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'catalogue'}: {problem['msg']}" for problem in error.errors()
        )
        raise ConfigurationError(f"{source}: {problems}") from error
