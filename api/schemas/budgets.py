"""Wire shapes of budgets and of the usage report."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, Field, WithJsonSchema, model_validator

from api.schemas.common import AMOUNT, Name, Strict

_ALERT_SCHEMA = {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 0.8}


class BudgetRequest(Strict):
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
        AMOUNT,
        WithJsonSchema({"anyOf": [{"type": "string", "examples": ["1.00"]}, {"type": "number", "minimum": 0}]}),
    ]
    alert_at: Annotated[Decimal, Field(gt=0, le=1, decimal_places=6), AMOUNT, WithJsonSchema(_ALERT_SCHEMA)] = Decimal(
        "0.8"
    )

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
