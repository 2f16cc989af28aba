"""The URLs that the environment and the command line name, checked."""

from collections.abc import Mapping

import httpx

from api.local.by_hand import program
from api.local.errors import SettingsError
from models.urls import postgres_url, redis_url

_READ = {"HEADRACE_DATABASE_URL": postgres_url, "HEADRACE_REDIS_URL": redis_url}


def database_url_of(environment: Mapping[str, str]) -> str:
    """The database's URL. Raises SettingsError when the variable is not set, or is not a URL of Postgres."""
    found = url_of(environment, "HEADRACE_DATABASE_URL")
    if found is None:
        raise SettingsError(f"set HEADRACE_DATABASE_URL; `{program()} up` has a database of its own")
    return found


def url_of(environment: Mapping[str, str], variable: str) -> str | None:
    """The URL of a store; None when the variable is empty or not set. Raises SettingsError when it is not a URL."""
    given = environment.get(variable, "").strip()
    if not given:
        return None
    try:
        return _READ[variable](given)
    except ValueError as error:
        raise SettingsError(f"{variable}: {error}") from None


def api_address(url: str) -> str:
    """The base URL of an API, without a slash at its end. Raises SettingsError when it is not a URL of HTTP."""
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"{url} is no address of an API: it begins with http:// or https://")
    try:
        host = httpx.URL(url).host
    except (httpx.InvalidURL, ValueError) as error:
        raise SettingsError(f"{url} is no address of an API: {error}") from None
    if not host:
        raise SettingsError(f"{url} is no address of an API: it has no host")
    return url.rstrip("/")
