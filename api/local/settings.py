"""The stores that the environment names, as the libraries read them."""

from collections.abc import Mapping

from api.local.by_hand import program
from api.local.errors import SettingsError
from models.urls import postgres_url, redis_url

_READ = {"HEADRACE_DATABASE_URL": postgres_url, "HEADRACE_REDIS_URL": redis_url}


def database_url_of(environment: Mapping[str, str]) -> str:
    """The database; raises SettingsError when none is named, or not as a URL of Postgres."""
    found = url_of(environment, "HEADRACE_DATABASE_URL")
    if found is None:
        raise SettingsError(f"set HEADRACE_DATABASE_URL; `{program()} up` has a database of its own")
    return found


def url_of(environment: Mapping[str, str], variable: str) -> str | None:
    """The URL of a store, None when the variable is empty or not set; raises SettingsError."""
    given = environment.get(variable, "").strip()
    if not given:
        return None
    try:
        return _READ[variable](given)
    except ValueError as error:
        raise SettingsError(f"{variable}: {error}") from None
