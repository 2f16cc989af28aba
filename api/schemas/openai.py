"""Wire shapes of OpenAI's API: what its clients send, and what they read."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from api.schemas.common import Metadata, Name, Strict

MIN_FILE_EXPIRY_S = 3600
MAX_FILE_EXPIRY_S = 30 * 86_400


class FileResource(BaseModel):
    """A file; times in unix seconds."""

    id: str = Field(examples=["file-0198c0ffee0070008000000000000000"])
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]
    status_details: str | None


class FileList(BaseModel):
    """A page of files; the next page is asked for with ``after=<last_id>``."""

    object: Literal["list"]
    data: Sequence[FileResource]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


class OutputExpiry(Strict):
    """When the output and error files expire, counted from when they are made."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=MIN_FILE_EXPIRY_S, le=MAX_FILE_EXPIRY_S)


class BatchRequest(Strict):
    """A batch to make from an uploaded file; what is not OpenAI's is ours."""

    input_file_id: str = Field(max_length=64)
    endpoint: Literal["/v1/chat/completions", "/v1/embeddings"]
    completion_window: str = Field(default="24h", pattern=r"^[1-9][0-9]{0,4}[mhd]$", examples=["24h", "90m"])
    metadata: Metadata | None = None
    output_expires_after: OutputExpiry | None = None
    name: Name | None = None
    priority: Literal["high", "normal", "low"] = "normal"
    max_parallel: int | None = Field(default=None, ge=1, le=1_000_000, description="Rows that run at one time.")
    dedupe: bool = Field(default=False, description="Compute rows with the same request once.")
    user: Name | None = None
    team: Name | None = None


class ChatRequest(BaseModel):
    """A chat completion to make; besides these, the fields of a job: `fallbacks`, `priority`, `team`, ..."""

    messages: list[dict[str, Any]]  # Any: see JobRequest
    model: str | None = Field(default=None, description="An LLM's name, a tier's name, or `auto`.")
    max_tokens: int | None = Field(default=None, description="Or `max_completion_tokens`; 256 if neither is given.")
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    response_format: dict[str, Any] | None = None  # Any: a JSON Schema
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: dict[str, bool] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None


class PromptDetails(BaseModel):
    cached_tokens: int = Field(description="Read from the provider's cache.")


class CompletionDetails(BaseModel):
    reasoning_tokens: int


class CompletionUsage(BaseModel):
    """What a job used, over all its attempts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class ChatCompletion(BaseModel):
    """OpenAI's chat completion; with ``stream``, chunks of it as server-sent events."""

    id: str = Field(examples=["chatcmpl-0198c0ffee0070008000000000000000"])
    object: Literal["chat.completion"]
    created: int
    model: str
    service_tier: Literal["default"]
    system_fingerprint: None
    choices: list[dict[str, Any]]  # Any: JSON
    usage: CompletionUsage


class EmbeddingRequest(Strict):
    """Texts to turn into vectors."""

    input: str | list[str]
    model: Name
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1, le=65_536)
    user: Name | None = None


class EmbeddingList(BaseModel):
    """OpenAI's list of embeddings."""

    object: Literal["list"]
    data: list[dict[str, Any]]  # Any: JSON
    model: str
    usage: dict[str, int]
