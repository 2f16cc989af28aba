"""Settings shared by several processes; each process composes only what it needs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from models.errors import ConfigurationError
from models.urls import postgres_url, redis_url

PREFIX = "HEADRACE_"


class HeadraceSettings(BaseSettings):
    """Read from ``HEADRACE_*`` environment variables; :func:`read_settings` tells what is wrong with them.

    An empty variable counts as not set: env files and Compose's ``${NAME:-}`` leave variables so. Those of
    ``EMPTY_IS_A_VALUE`` may be empty. Spaces and line ends around a value are removed: env files of Windows add them.
    """

    EMPTY_IS_A_VALUE: ClassVar[frozenset[str]] = frozenset()

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _tidy(cls, given: Any) -> Any:  # Any: what stands in the environment, before it is checked
        if not isinstance(given, Mapping):
            return given
        tidy = {name: value.strip() if isinstance(value, str) else value for name, value in given.items()}
        return {name: value for name, value in tidy.items() if value != "" or name in cls.EMPTY_IS_A_VALUE}


S = TypeVar("S", bound=HeadraceSettings)


def read_settings(kind: type[S], given: Mapping[str, str | None] | None = None) -> S:
    """The settings of the environment, of which ``given`` replaces some by the names of their fields.

    Raises ConfigurationError, which names each variable that cannot be used.
    """
    try:
        return kind.model_validate(given or {})
    except ValidationError as error:
        problems = [
            _problem(PREFIX + "_".join(map(str, found["loc"])).upper(), found["type"], found["msg"])
            for found in error.errors(include_input=False, include_context=False, include_url=False)
        ]
        raise ConfigurationError("; ".join(problems)) from None
    except SettingsError as error:
        raise ConfigurationError(str(error)) from None


def _problem(variable: str, kind: str, message: str) -> str:
    if kind == "missing":
        return f"{variable} is not set"
    return f"{variable.rstrip('_')}: {message.removeprefix('Value error, ')}"


class StoreSettings(HeadraceSettings):
    """Where the truth is (Postgres) and where wake-ups travel (the Redis protocol)."""

    database_url: str = Field(
        description="Postgres, as `postgresql://user:password@host:port/name`: "
        "[URLs](operations.md#urls-of-postgres-and-redis)."
    )
    redis_url: str = Field(description="A Redis-protocol server, as `redis://:password@host:port/0`.")

    @field_validator("database_url")
    @classmethod
    def _read_database_url(cls, given: str) -> str:
        return postgres_url(given)

    @field_validator("redis_url")
    @classmethod
    def _read_redis_url(cls, given: str) -> str:
        return redis_url(given)


class CatalogSettings(HeadraceSettings):
    """Which LLMs exist."""

    catalog: Path | None = Field(default=None, description="The catalogue file; the shipped one if unset.")
    optional_llms: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="The optional LLMs of the catalogue that exist, by name, with commas between;"
        " the same for every process. `headrace up` looks which are installed when it is unset.",
    )

    @field_validator("catalog")
    @classmethod
    def _find_home(cls, given: Path | None) -> Path | None:
        try:
            return given and given.expanduser()
        except RuntimeError as error:
            raise ValueError(f"{given}: {error}") from None

    @field_validator("optional_llms", mode="before")
    @classmethod
    def _split(cls, given: Any) -> Any:  # Any: what stands in the environment, before it is checked
        return tuple(filter(None, map(str.strip, given.split(",")))) if isinstance(given, str) else given
