"""Wire shapes of jobs as they are shown."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field


class InputDetails(BaseModel):
    cached_tokens: int


class OutputDetails(BaseModel):
    reasoning_tokens: int


class UsageResource(BaseModel):
    """Tokens used; the details are there when they are not zero."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputDetails | None = Field(default=None, description="Read from the provider's cache.")
    output_tokens_details: OutputDetails | None = None
    estimated: bool | None = Field(default=None, description="The provider did not say; these are upper estimates.")


class ResultResource(BaseModel):
    text: str | None = None
    finish_reason: str | None = None
    model: str
    embeddings: list[list[float] | str] | None = Field(default=None, description="Of a job of kind `embedding`.")
    degraded: bool = Field(default=False, description="A stored answer, for want of an LLM's.")


class FailureResource(BaseModel):
    code: str
    message: str
    retryable: bool


class AttemptResource(BaseModel):
    """One execution of a job on one LLM; ``outcome`` is null while it runs."""

    number: int
    model: str
    provider: str
    outcome: Literal["completed", "failed", "cancelled", "expired", "released", "snoozed", "lost"] | None
    error: FailureResource | None
    started_at: datetime
    duration_ms: int | None
    time_to_first_token_ms: int | None
    usage: UsageResource
    cost_usd: str
    adapted: Sequence[str] = Field(
        description="What was changed in the request: a name alone was left out, `a -> b` was sent as b."
    )


class CandidateResource(BaseModel):
    model: str
    score: float
    why: str


class RoutingResource(BaseModel):
    """Why a job's LLM was chosen; the chosen one is the first candidate."""

    strategy: Literal["cost", "speed", "quality", "balanced", "explicit"]
    reason: str
    candidates: Sequence[CandidateResource]


class JobResource(BaseModel):
    """A job as it is now. Times are ISO 8601 in UTC, money is a decimal string in USD."""

    id: str = Field(examples=["job_0198c0ffee0070008000000000000000"])
    object: Literal["job"]
    kind: Literal["generation", "embedding"]
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled", "expired"]
    progress: float
    status_url: str
    model: str = Field(description="The model asked for.")
    tier: str
    queue: str
    routing: RoutingResource | None = Field(description="Why this LLM was chosen; null if it was before this was kept.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime
    next_attempt_at: datetime | None = Field(description="When a job that waits for a retry is due.")
    result: ResultResource | None
    error: FailureResource | None
    usage: UsageResource | None
    cost_usd: str = Field(examples=["0.000000"])
    attempts: Sequence[AttemptResource]
    batch_id: str | None
    conversation_id: str | None
    user: str | None
    team: str | None
    metadata: dict[str, str]


class JobList(BaseModel):
    """A page of jobs, newest first; the next page is asked for with ``after=<last_id>``."""

    object: Literal["list"]
    data: Sequence[JobResource]
    first_id: str | None
    last_id: str | None
    has_more: bool
