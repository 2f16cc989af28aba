"""Wire shapes of batches: OpenAI's Batch object, with what Headrace knows besides."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from models.batch import BatchStatus


class BatchProblem(BaseModel):
    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchProblems(BaseModel):
    object: Literal["list"]
    data: Sequence[BatchProblem]


class RequestCounts(BaseModel):
    """OpenAI's counts; ``failed`` is everything that ended without an answer."""

    total: int
    completed: int
    failed: int


class RowCounts(BaseModel):
    """Rows by what has become of them; they add up to ``total``."""

    total: int
    queued: int
    in_progress: int
    completed: int
    failed: int
    cancelled: int
    expired: int


class BatchResource(BaseModel):
    """A batch as it is now. Times are unix seconds, as OpenAI's are; money is a decimal string in USD."""

    id: str = Field(examples=["batch_0198c0ffee0070008000000000000000"])
    object: Literal["batch"]
    endpoint: str
    model: str | None
    errors: BatchProblems | None
    input_file_id: str | None
    completion_window: str = Field(examples=["24h"])
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    paused_at: int | None
    request_counts: RequestCounts
    usage: dict[str, Any]  # Any: numbers, and objects of them
    metadata: dict[str, str]
    name: str | None
    priority: Literal["high", "normal", "low"]
    max_parallel: int | None
    dedupe: bool
    pause_reason: Literal["requested", "budget_exhausted"] | None
    progress: float
    counts: RowCounts
    cost_usd: str
    reserved_usd: str = Field(description="Held for the rows that are not finished.")
    rows_per_s: float | None = Field(description="Lately; null while the batch does not run.")
    estimated_finish_at: int | None
    user: str | None
    team: str | None
    results_url: str


class BatchList(BaseModel):
    """A page of batches, newest first; the next page is asked for with ``after=<last_id>``."""

    object: Literal["list"]
    data: Sequence[BatchResource]
    first_id: str | None
    last_id: str | None
    has_more: bool


class TokenRange(BaseModel):
    low: int
    expected: int
    high: int


class TokenRanges(BaseModel):
    input: TokenRange
    output: TokenRange


class BatchEstimate(BaseModel):
    """What a batch would come to: the answer to a dry run, of which nothing is stored."""

    object: Literal["batch.estimate"]
    rows: int
    distinct_rows: int = Field(description="Those that would be computed; fewer than `rows` with `dedupe` only.")
    columns: list[str]
    model: str
    route: list[str]
    tokens: TokenRanges
    expected_cost_usd: str
    worst_case_usd: str = Field(description="What would be reserved.")
    seconds: float | None = Field(description="By the speed measured lately; null where nothing was.")
    assumptions: list[str]
