"""Wire shapes of what a job may be sent to."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field


class LoadedResource(BaseModel):
    """One of the worker processes that have the model in memory."""

    since: datetime
    memory_bytes: int = Field(description="Weights, cache and buffers in the machine's memory.")
    quantization: str = Field(examples=["Q4_1"])
    jobs: int = Field(description="Those that it runs or that wait there, at its last report.")
    tokens_per_s: float | None


class PricesResource(BaseModel):
    """USD per million tokens, as decimal strings."""

    input: str
    output: str
    cached_input: str | None


class MeasuredResource(BaseModel):
    """What the latest attempts show; null where there were none."""

    tokens_per_s: float | None
    time_to_first_token_s: float | None
    latency_s: float | None
    error_rate: float


class ModelResource(BaseModel):
    """Something that a job's ``model`` may name: an LLM, or what chooses among LLMs. What is not OpenAI's is ours."""

    id: str
    object: Literal["model"]
    created: int = Field(description="When the catalogue was last changed, in unix seconds.")
    owned_by: str = Field(description="The provider of an LLM; `headrace` for a tier and for `auto`.")
    kind: Literal["llm", "tier", "auto"]
    chooses_from: list[str] | None = Field(default=None, description="The LLMs of a tier, or of `auto`.")
    tier: str | None = None
    provider: str | None = None
    context_window: int | None = None
    quality: float | None = None
    prices: PricesResource | None = None
    fallbacks: list[str] | None = None
    loaded: list[LoadedResource] | None = Field(default=None, description="Of a local LLM: where it is in memory.")
    measured: MeasuredResource | None = None
    breaker: Literal["closed", "open", "half_open"] | None = Field(
        default=None, description="The circuit breaker; null while Redis is away."
    )


class ModelList(BaseModel):
    """Everything that a job's ``model`` may name, on one page."""

    object: Literal["list"]
    data: list[ModelResource]
    first_id: str
    last_id: str
    has_more: bool
