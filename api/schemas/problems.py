"""Wire shapes of problems."""

from pydantic import BaseModel, Field


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
