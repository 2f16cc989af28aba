"""Settings shared by several processes; each process composes only what it needs."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


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
