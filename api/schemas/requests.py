"""Wire shapes of a job to submit."""

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from api.schemas.common import AMOUNT, Metadata, Name, Strict
from models.catalog import AUTO

MAX_MESSAGES = 2000
MAX_PARTS = 1000
DEFAULT_MAX_TOKENS = 256
DEFAULT_EXPIRES_IN_S = 86_400
MAX_EXPIRES_IN_S = 30 * 86_400
_INT64 = 2**63


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


class Message(Strict):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_join_parts), WithJsonSchema(_PARTS_SCHEMA)]


class JsonSchemaFormat(Strict):
    """The JSON Schema that an answer must follow."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = Field(default=None, max_length=1024)
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")  # Any: a JSON Schema
    strict: bool | None = None


class ResponseFormat(Strict):
    """The form of the answer, as in OpenAI's chat completions."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _schema_goes_with_its_type(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is required with type json_schema, and only there")
        return self


class JobRequest(Strict):
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
    adjust: bool = Field(
        default=False,
        description="`max_tokens` and `priority` may sink where a context is too small or a rate limit is reached.",
    )
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
        AMOUNT,
        WithJsonSchema(_USD_SCHEMA),
    ] = None
    user: Name | None = Field(default=None, description="Your user, for attribution.")
    team: Name | None = Field(default=None, description="Your team, for attribution.")
    metadata: Metadata = Field(default={}, description="16 pairs at most; keys of 64, values of 512 characters.")

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
