"""The catalogue: which LLMs exist, in which tiers, served by which pools.

Read from a TOML file (``HEADRACE_CATALOG``, or the shipped ``catalog.toml``). Unknown keys are
errors, and every reference is checked when the file is loaded, so that a typing mistake stops a
process at its start and not a job in its middle.
"""

import tomllib
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.errors import ConfigurationError
from models.plans import Plans
from models.pricelist import first_prices
from models.pricing import Price as PricePerToken
from models.pricing import Tariff
from models.textfiles import read_text

SHIPPED = Path(__file__).with_name("catalog.toml")
RESERVED_QUEUES = frozenset({"webhooks", "documents", "maintenance"})
AUTO = "auto"

log = structlog.get_logger()

Pool = Literal["cpu", "gpu", "remote"]
LOCAL_POOLS: frozenset[Pool] = frozenset({"cpu", "gpu"})
"""Pools whose workers run models in their own process, which a job may therefore kill."""
SplitMode = Literal["none", "layer", "row"]
Switch = Literal["auto", "on", "off"]
Strategy = Literal["cost", "speed", "quality", "balanced"]
Quantization = Literal["int4", "int8", "f16"]
Price = Decimal


Usd = partial(Field, ge=0, max_digits=18, decimal_places=6)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_CONCURRENCY: Mapping[Pool, int] = {"cpu": 4, "gpu": 16, "remote": 200}
"""The jobs that a worker keeps in flight for a pool of which the catalogue says nothing."""


class PoolConfig(_Entry):
    """A pool of worker processes: ``concurrency`` is the jobs one process keeps in flight."""

    concurrency: int = Field(default=4, ge=1, le=10_000)


class LastResort(_Entry):
    """A stored answer, given and marked as degraded when every LLM of a route failed its job."""

    text: str = Field(min_length=1)


class Tier(_Entry):
    """A class of LLMs, with the Celery queue that carries its jobs and the pool that runs them."""

    queue: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")
    pool: Pool
    last_resort: LastResort | None = None


class Weights(_Entry):
    """What an LLM's price, speed, quality and reliability count for, relative to one another."""

    cost: float = Field(default=0.0, ge=0)
    speed: float = Field(default=0.0, ge=0)
    quality: float = Field(default=0.0, ge=0)
    reliability: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _something_counts(self) -> "Weights":
        if not self.total:
            raise ValueError("one weight at least must be above 0")
        return self

    @property
    def total(self) -> float:
        return self.cost + self.speed + self.quality + self.reliability


STRATEGIES: dict[Strategy, Weights] = {
    "cost": Weights(cost=0.9, reliability=0.1),
    "speed": Weights(speed=0.8, reliability=0.2),
    "quality": Weights(quality=0.9, reliability=0.1),
    "balanced": Weights(cost=0.4, speed=0.2, quality=0.2, reliability=0.2),
}
"""The weights of a strategy that the catalogue says nothing about."""


class Routing(_Entry):
    """How `auto` and a tier's name choose among LLMs."""

    strategy: Strategy = "balanced"
    weights: dict[Strategy, Weights] = {}

    @property
    def weights_in_use(self) -> Weights:
        """The weights of the strategy."""
        return self.weights.get(self.strategy, STRATEGIES[self.strategy])


class BreakerConfig(_Entry):
    """When an LLM's circuit breaker opens, and how it closes again; times in seconds."""

    window_s: float = Field(default=30.0, gt=0, description="Failures older than this are forgotten.")
    min_calls: int = Field(default=10, ge=1, description="It does not open on fewer calls than these.")
    error_rate: float = Field(default=0.5, gt=0, le=1, description="It opens at this share of failures.")
    cooldown_s: float = Field(default=5.0, gt=0, description="From opening to the first probe; doubled each time.")
    max_cooldown_s: float = Field(default=60.0, gt=0)
    successes: int = Field(default=3, ge=1, description="Probes that must succeed, one after another, to close it.")
    probe_lease_s: float = Field(default=10.0, gt=0, description="After which a dead process's probe is another's.")


class MockBehaviour(_Entry):
    """What the ``mock`` provider does: times in seconds, rates from 0 to 1."""

    latency_s: float = Field(default=0.0, ge=0)
    output: str = "{prompt}"
    error: str | None = None
    error_rate: float = Field(default=1.0, ge=0, le=1)
    error_calls: int | None = Field(default=None, ge=0, description="Only a process's first calls fail.")
    retry_after_s: float | None = Field(default=None, ge=0)
    word_s: float = Field(default=0.0, ge=0, description="Before each word of the answer.")
    breaks_after_words: int | None = Field(default=None, ge=1, description="The answer breaks off after so many.")
    input_tokens: int = Field(default=10, ge=0)
    output_tokens: int = Field(default=10, ge=0)
    record: Path | None = Field(default=None, description="Append each call to this file, for fault tests.")
    fault: Literal["crash", "stall"] | None = Field(
        default=None, description="Each call ends its process, or stops its interpreter, for fault tests."
    )


class PriceFrom(_Entry):
    """Prices that apply from a moment on, until those of the next such entry."""

    from_: AwareDatetime = Field(alias="from")
    input_price: Price = Usd()
    output_price: Price = Usd()
    cached_input_price: Price | None = Usd(default=None)

    @property
    def price(self) -> PricePerToken:
        return PricePerToken(self.input_price, self.output_price, self.cached_input_price)


class EngineConfig(_Entry):
    """How a local model is held in memory and computed; what is unset is derived from the machine."""

    parallel: int | None = Field(default=None, ge=1, le=128, description="Sequences decoded together; the pool's jobs.")
    cells: int | None = Field(default=None, ge=64, description="Tokens that the KV cache holds, over all sequences.")
    batch: int = Field(default=512, ge=32, le=8192, description="The most tokens of one decoding step.")
    step_timeout_s: float = Field(default=60.0, gt=0, description="After which a step counts as hanging.")
    gpu_layers: int | None = Field(
        default=None, ge=-1, description="Layers that GPUs hold, -1 for all; unset: all in a GPU pool, else none."
    )
    split_mode: SplitMode = Field(default="layer", description="How several GPUs share the model.")
    tensor_split: tuple[float, ...] = Field(default=(), description="Each GPU's share; unset: by free memory.")
    main_gpu: int = Field(default=0, ge=0, description="The GPU that holds the model when it is not split.")
    flash_attention: Switch = "auto"
    offload_kv: bool = Field(default=True, description="Whether the KV cache is where the layers are.")

    @model_validator(mode="after")
    def _shares_are_shares(self) -> "EngineConfig":
        if self.tensor_split and (min(self.tensor_split) < 0 or not sum(self.tensor_split)):
            raise ValueError("tensor_split: shares are not negative, and one at least is above 0")
        return self


RENAMED: Mapping[str, frozenset[str]] = {
    "max_tokens": frozenset({"max_completion_tokens"}),
    "response_format": frozenset({"json_object", "instruction"}),
    "system": frozenset({"developer", "user"}),
}
"""What may be sent as something else: a parameter's name, the form of an answer, the role of system messages."""

_NEEDED = frozenset({"model", "messages", "input", "max_tokens", "dimensions"})
_REMOTE = ("openai", "anthropic")


class LLM(_Entry):
    """One language model as the catalogue describes it; prices in USD per million tokens."""

    tier: str
    provider: Literal["llamacpp", "openai", "anthropic", "mock"]
    model: str | None = None
    source: str | None = Field(default=None, description="A local model: a path, or `package:<package>/<file>`.")
    sources: dict[Quantization, str] = Field(default={}, description="Instead: files to choose from by free memory.")
    essential: bool = Field(default=False, description="A local model that is loaded at start and kept.")
    idle_unload_s: float = Field(default=900.0, gt=0, description="When a local model that nobody uses is unloaded.")
    base_url: str | None = None
    api_key_env: str | None = None
    api_key_file: Path | None = Field(default=None, description="A file that holds the key and nothing else.")
    api_key_header: str | None = Field(
        default=None, pattern=r"^[A-Za-z][A-Za-z0-9-]{0,63}$", description="Unset: the API's own, or Azure's `api-key`."
    )
    unsupported: tuple[str, ...] = Field(default=(), description="Parameters of a request that the LLM does not take.")
    renamed: dict[str, str] = Field(default={}, description="What is sent to the LLM as something else.")
    context_window: int = Field(ge=1)
    quality: float = Field(default=0.5, ge=0, le=1)
    input_price: Price = Usd(description="Absent: the first of `prices`, or the provider's list price.")
    output_price: Price = Usd()
    cached_input_price: Price | None = Usd(default=None, description="Absent: cached input costs what other does.")
    prices: tuple[PriceFrom, ...] = ()
    timeout_s: float = Field(default=300.0, gt=0)
    connect_timeout_s: float = Field(default=10.0, gt=0)
    read_timeout_s: float | None = Field(default=None, gt=0, description="The longest silence; `timeout_s` if unset.")
    max_concurrency: int | None = Field(default=None, ge=1, description="Calls in flight, over all processes.")
    retries: int = Field(default=2, ge=0, le=20)
    threads: int | None = Field(default=None, ge=1, description="Compute threads of a local model.")
    engine: EngineConfig = EngineConfig()
    embeddings: bool = Field(default=False, description="It turns texts into vectors, and does nothing else.")
    chat_template: str | None = Field(default=None, description="Jinja, in place of the model file's own.")
    stop: tuple[str, ...] = Field(default=(), description="Strings that end every answer of a local model.")
    optional: bool = Field(default=False, description="Exists only where `HEADRACE_OPTIONAL_LLMS` names it.")
    fallbacks: tuple[str, ...] = ()
    mock: MockBehaviour = MockBehaviour()

    @model_validator(mode="before")
    @classmethod
    def _has_prices(cls, given: Any) -> Any:  # Any: the file's table, before it is checked
        return given | first_prices(given, datetime.now(UTC)) if isinstance(given, dict) else given

    @cached_property
    def tariff(self) -> Tariff:
        """The prices over time."""
        first = PricePerToken(self.input_price, self.output_price, self.cached_input_price)
        return Tariff(first, tuple((later.from_, later.price) for later in sorted(self.prices, key=_since)))

    @model_validator(mode="after")
    def _provider_has_what_it_needs(self) -> "LLM":
        needed = {"openai": "base_url", "anthropic": "model"}.get(self.provider)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"provider {self.provider!r} needs `{needed}`")
        if self.provider == "llamacpp" and (self.source is None) == (not self.sources):
            raise ValueError("provider 'llamacpp' needs `source` or `sources`, not both")
        if self.embeddings and self.provider not in ("openai", "mock"):
            raise ValueError(f"provider {self.provider!r} has no embeddings")
        if (self.unsupported or self.renamed) and self.provider not in _REMOTE:
            raise ValueError(f"provider {self.provider!r} has no `unsupported` and no `renamed` parameters")
        if needed_all_the_same := _NEEDED.intersection(self.unsupported):
            raise ValueError(f"unsupported: no request is without {', '.join(sorted(needed_all_the_same))}")
        for name, to in self.renamed.items():
            if to not in RENAMED.get(name, ()):
                raise ValueError(f"renamed: {name!r} cannot be sent as {to!r}")
        if self.api_key_env and self.api_key_file:
            raise ValueError("give `api_key_env` or `api_key_file`, not both")
        return self


def _since(later: PriceFrom) -> datetime:
    return later.from_


class Catalog(_Entry):
    """Every pool, tier and LLM, with their references checked."""

    default: str | None = None
    routing: Routing = Routing()
    breaker: BreakerConfig = BreakerConfig()
    pools: dict[Pool, PoolConfig] = {}
    tiers: dict[str, Tier]
    llms: dict[str, LLM] = Field(min_length=1)
    plans: Plans

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

    @model_validator(mode="after")
    def _default_always_exists(self) -> "Catalog":
        named = [self.default] if self.default in self.llms else self.llms_of_tier(self.default or "")
        if named and all(self.llms[name].optional for name in named):
            raise ValueError(f"default: {self.default!r} has only optional LLMs, which may be left out")
        return self

    @cached_property
    def queues(self) -> tuple[str, ...]:
        """Every queue that carries jobs, sorted."""
        return tuple(sorted({tier.queue for tier in self.tiers.values()}))

    @cached_property
    def local_queues(self) -> tuple[str, ...]:
        """The queues of the pools of local models, sorted."""
        return tuple(sorted({tier.queue for tier in self.tiers.values() if tier.pool in LOCAL_POOLS}))

    @cached_property
    def pools_in_use(self) -> dict[Pool, PoolConfig]:
        """The pools that some tier names, with their settings."""
        names = sorted({tier.pool for tier in self.tiers.values()})
        return {name: self.pools.get(name) or PoolConfig(concurrency=_CONCURRENCY[name]) for name in names}

    def concurrency_of(self, queues: Collection[str]) -> int:
        """The jobs that one worker of these queues keeps in flight: the most that one of their pools has."""
        pools = {tier.pool for tier in self.tiers.values() if tier.queue in queues}
        return max((self.pools_in_use[pool].concurrency for pool in pools), default=1)

    def queues_of_pool(self, pool: str) -> list[str]:
        """The queues that a pool's workers consume, sorted."""
        return sorted({tier.queue for tier in self.tiers.values() if tier.pool == pool})

    def queue_of(self, llm: str) -> str:
        """The queue that carries the jobs of an LLM."""
        return self.tiers[self.llms[llm].tier].queue

    def last_resort_of(self, route: Sequence[str]) -> str | None:
        """The stored answer of the first tier along a route that has one."""
        tiers = [self.tiers[self.llms[name].tier] for name in route if name in self.llms]
        return next((tier.last_resort.text for tier in tiers if tier.last_resort is not None), None)

    def llms_of_tier(self, tier: str) -> list[str]:
        """The names of a tier's LLMs, in the order of the file."""
        return [name for name, llm in self.llms.items() if llm.tier == tier]

    def pool_of(self, llm: str) -> Pool:
        """The pool that runs an LLM."""
        return self.tiers[self.llms[llm].tier].pool

    def without(self, left_out: Collection[str]) -> "Catalog":
        """The catalogue without some LLMs: routes pass them over, and tiers that they leave empty are gone."""
        if not left_out:
            return self
        llms = {
            name: llm.model_copy(update={"fallbacks": tuple(other for other in llm.fallbacks if other not in left_out)})
            for name, llm in self.llms.items()
            if name not in left_out
        }
        emptied = {self.llms[name].tier for name in left_out} - {llm.tier for llm in llms.values()}
        tiers = {name: tier for name, tier in self.tiers.items() if name not in emptied}
        return Catalog.model_validate({**dict(self), "llms": llms, "tiers": tiers})


def load_catalog(path: Path | None = None, optional: Collection[str] = ()) -> Catalog:
    """Read and check a catalogue file, the shipped one by default; of its optional LLMs only those that are named.

    Which these are is a setting and never looked up here: the API, which holds no model, and every worker
    have the same catalogue. Raises ConfigurationError, naming the file and the key.
    """
    whole = read_catalog(path)
    catalog = select_optional(whole, optional)
    if left_out := sorted(whole.llms.keys() - catalog.llms.keys()):
        log.info("catalog.optional_left_out", llms=left_out)
    return catalog


def select_optional(whole: Catalog, optional: Collection[str]) -> Catalog:
    """A catalogue with those of its optional LLMs that are named; raises ConfigurationError for names it has not."""
    known = {name for name, llm in whole.llms.items() if llm.optional}
    if unknown := set(optional) - known:
        raise ConfigurationError(f"the catalogue has no optional LLM {', '.join(sorted(unknown))}")
    try:
        return whole.without(known - set(optional))
    except ValidationError as error:
        raise ConfigurationError(f"the catalogue without its optional LLMs: {_problems(error)}") from error


def read_catalog(path: Path | None = None) -> Catalog:
    """Read and check a catalogue file with all that is optional in it. Raises ConfigurationError."""
    source = path or SHIPPED
    try:
        return Catalog.model_validate(tomllib.loads(read_text(source)))
    except OSError as error:
        raise ConfigurationError(f"cannot read the catalogue {source}: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigurationError(f"{source}: {_problems(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{source} is not valid TOML: {error}") from error


def _problems(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'catalogue'}: {problem['msg']}" for problem in error.errors()
    )
