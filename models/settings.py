"""Settings shared by several processes; each process composes only what it needs."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class HeadraceSettings(BaseSettings):
    """Read from ``HEADRACE_*`` environment variables."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", extra="ignore", frozen=True)


class StoreSettings(HeadraceSettings):
    """Where the truth is (Postgres) and where wake-ups travel (the Redis protocol)."""

    database_url: str = Field(description="Postgres, as `postgresql+psycopg://user:password@host:port/name`.")
    redis_url: str = Field(description="A Redis-protocol server, as `redis://host:port/0`.")


class CatalogSettings(HeadraceSettings):
    """Which LLMs exist."""

    catalog: Path | None = Field(default=None, description="The catalogue file; the shipped one if unset.")
    optional_llms: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="The optional LLMs of the catalogue that exist, by name, with commas between;"
        " the same for every process. `headrace up` looks which are installed when it is unset.",
    )

    @field_validator("optional_llms", mode="before")
    @classmethod
    def _split(cls, given: Any) -> Any:  # Any: what stands in the environment, before it is checked
        return tuple(filter(None, map(str.strip, given.split(",")))) if isinstance(given, str) else given
