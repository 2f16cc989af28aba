"""Wire shapes of health."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class HealthPart(BaseModel):
    model_config = ConfigDict(extra="allow")

    status: Literal["ok", "read_only", "down"]


class HealthReport(BaseModel):
    """The parts of the system and what they add up to; `/health` shows the parts to those alone who may see them."""

    status: Literal["ok", "degraded", "down"]
    parts: dict[str, HealthPart] | None = None
