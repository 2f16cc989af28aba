"""Wire shapes: what a request may say, and what the resources look like in the OpenAPI document."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from models.catalog import AUTO

MAX_MESSAGES = 2000
MAX_PARTS = 1000
DEFAULT_MAX_TOKENS = 256
DEFAULT_EXPIRES_IN_S = 86_400
MAX_EXPIRES_IN_S = 30 * 86_400
_INT64 = 2**63

Name = Annotated[str, Field(min_length=1, max_length=256)]


def _join_parts(content: object) -> object:
    """OpenAI's list of text parts as one string; anything else is left to the field's own check."""
    if not isinstance(content, list):
        return content
    if not 1 <= len(content) <= MAX_PARTS:
        raise ValueError(f"send 1 to {MAX_PARTS} content parts")
    for part in content:
        if not (isinstance(part, dict) and set(part) == {"type", "text"} and part["type"] == "text"):
            raise ValueError('only text parts are supported: {"type": "text", "text": "..."}')
        if not isinstance(part["text"], str):
            raise ValueError("the text of a part must be a string")
    return "".join(part["text"] for part in content)


def _listed(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


def _decimal(amount: object) -> object:
    """A decimal string or a JSON number as a Decimal, by its shortest decimal form."""
    if isinstance(amount, bool) or not isinstance(amount, str | int | float):
        return amount
    try:
        return Decimal(str(amount).strip())
    except ArithmeticError:
        raise ValueError('send an amount in USD, such as "0.05"') from None


def _printable(metadata: dict[str, str]) -> dict[str, str]:
    if any(not key for key in metadata):
        raise ValueError("a metadata key must not be empty")
    return metadata


_PARTS_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_PARTS,
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
                "additionalProperties": False,
            },
        },
    ]
}
_STOP_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 4},
        {"type": "null"},
    ],
    "description": "Up to four strings at which the answer ends.",
}
_USD_SCHEMA = {
    "anyOf": [{"type": "string", "examples": ["0.05"]}, {"type": "number", "minimum": 0}, {"type": "null"}],
    "description": "Refuse the job if its worst case is dearer, in USD.",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Message(_Strict):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_join_parts), WithJsonSchema(_PARTS_SCHEMA)]


class JsonSchemaFormat(_Strict):
    """The JSON Schema that an answer must follow."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = Field(default=None, max_length=1024)
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")  # Any: a JSON Schema
    strict: bool | None = None


class ResponseFormat(_Strict):
    """The form of the answer, as in OpenAI's chat completions."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _schema_goes_with_its_type(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is required with type json_schema, and only there")
        return self


class JobRequest(_Strict):
    """A job to submit: exactly one of ``prompt`` and ``messages``."""

    prompt: str | None = Field(default=None, min_length=1, description="A prompt: one user message.")
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    model: Name = Field(default=AUTO, description="An LLM's name, a tier's name, or `auto`.")
    max_tokens: int = Field(default=DEFAULT_MAX_TOKENS, ge=1, le=2**31 - 1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=2**31 - 1, description="Not known to every provider.")
    min_p: float | None = Field(default=None, ge=0, le=1, description="Not known to every provider.")
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]] | None,
        Field(min_length=1, max_length=4),
        BeforeValidator(_listed),
        WithJsonSchema(_STOP_SCHEMA),
    ] = None
    seed: int | None = Field(default=None, ge=-_INT64, lt=_INT64)
    response_format: ResponseFormat | None = None
    fallbacks: Annotated[list[Name], Field(max_length=16, fail_fast=True)] | None = Field(
        default=None, description="LLMs to try next; the catalogue's if absent, none if empty."
    )
    priority: Literal["high", "normal", "low"] = "normal"
    callback_url: str | None = Field(
        default=None, max_length=2048, description="Not delivered by this version: refused."
    )
    conversation_id: str | None = Field(default=None, max_length=256, description="Not kept by this version: refused.")
    expires_in: int = Field(
        default=DEFAULT_EXPIRES_IN_S,
        ge=1,
        le=MAX_EXPIRES_IN_S,
        description="Seconds until the job is `expired` if unfinished.",
    )
    max_cost_usd: Annotated[
        Decimal | None,
        Field(ge=0, max_digits=18, decimal_places=6),
        BeforeValidator(_decimal),
        WithJsonSchema(_USD_SCHEMA),
    ] = None
    user: Name | None = Field(default=None, description="Your user, for attribution.")
    team: Name | None = Field(default=None, description="Your team, for attribution.")
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
        Field(max_length=16),
        AfterValidator(_printable),
    ] = Field(default={}, description="16 pairs at most; keys of 64, values of 512 characters.")

    @model_validator(mode="after")
    def _one_prompt(self) -> "JobRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send exactly one of prompt and messages")
        return self

    def chat(self) -> list[dict[str, str]]:
        """The messages to answer; a prompt is one user message."""
        if self.messages is None:
            return [{"role": "user", "content": self.prompt or ""}]
        return [{"role": message.role, "content": message.content} for message in self.messages]


_ALERT_SCHEMA = {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 0.8}


class BudgetRequest(_Strict):
    """A budget to create or change: what identifies it is its scope, subject and window."""

    scope: Literal["tenant", "team", "user", "key"]
    subject: Name | None = Field(
        default=None,
        description="The team's or user's name, or the part of the API key after `hr_`, up to the next `_`.",
    )
    window: Literal["day", "month", "total"]
    limit_usd: Annotated[
        Decimal,
        Field(ge=0, lt=10**12, decimal_places=6),
        BeforeValidator(_decimal),
        WithJsonSchema({"anyOf": [{"type": "string", "examples": ["1.00"]}, {"type": "number", "minimum": 0}]}),
    ]
    alert_at: Annotated[
        Decimal, Field(gt=0, le=1, decimal_places=6), BeforeValidator(_decimal), WithJsonSchema(_ALERT_SCHEMA)
    ] = Decimal("0.8")

    @model_validator(mode="after")
    def _subject_goes_with_its_scope(self) -> "BudgetRequest":
        if (self.scope == "tenant") != (self.subject is None):
            raise ValueError("a subject is required with the scopes team, user and key, and only there")
        return self


class BudgetResource(BaseModel):
    """A budget and its current period. Days and months are UTC; money is a decimal string in USD."""

    id: str = Field(examples=["budget_0198c0ffee0070008000000000000000"])
    object: Literal["budget"]
    scope: Literal["tenant", "team", "user", "key"]
    subject: str | None
    window: Literal["day", "month", "total"]
    limit_usd: str
    spent_usd: str
    reserved_usd: str = Field(description="Held for jobs that are not finished.")
    remaining_usd: str
    alert_at: float
    resets_at: datetime | None


class BudgetList(BaseModel):
    """A page of budgets, oldest first; the next page is asked for with ``after=<last_id>``."""

    object: Literal["list"]
    data: Sequence[BudgetResource]
    first_id: str | None
    last_id: str | None
    has_more: bool


class UsageRow(BaseModel):
    """Usage of one group; it has a member for each name of ``group_by``."""

    model: str | None = None
    team: str | None = None
    user: str | None = None
    key: str | None = None
    day: str | None = None
    jobs: int
    attempts: int = Field(description="Those that used tokens.")
    input_tokens: int
    output_tokens: int
    cost_usd: str


class UsageReport(BaseModel):
    object: Literal["list"]
    data: Sequence[UsageRow]


class InputDetails(BaseModel):
    cached_tokens: int


class OutputDetails(BaseModel):
    reasoning_tokens: int


class UsageResource(BaseModel):
    """Tokens used; the details of an attempt are there when they are not zero."""

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


class ProblemField(BaseModel):
    field: str
    message: str
    line: int | None = Field(default=None, description="Of an uploaded file: where the row begins.")


class OpenAIError(BaseModel):
    message: str
    type: str
    code: str
    param: str | None


class Problem(BaseModel):
    """RFC 9457 problem details; ``error`` says the same to OpenAI's clients."""

    type: str = Field(examples=["urn:headrace:error:validation_failed"])
    title: str
    status: int
    detail: str
    code: str
    error: OpenAIError
    errors: list[ProblemField] | None = Field(default=None, description="One entry per field that is wrong.")


class LoadedResource(BaseModel):
    """A worker process that has the model in memory."""

    worker: str
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
    """Everything that a job's ``model`` may name."""

    object: Literal["list"]
    data: list[ModelResource]


class HealthPart(BaseModel):
    model_config = ConfigDict(extra="allow")

    status: Literal["ok", "down"]


class HealthReport(BaseModel):
    """The parts of the system and what they add up to."""

    status: Literal["ok", "degraded", "down"]
    parts: dict[str, HealthPart]
