"""How a process starts: with settings and stores that can be used, or it ends with one line that says why."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from models.errors import ConfigurationError
from models.redis_access import require_redis
from models.session import require_session
from models.settings import HeadraceSettings, StoreSettings, read_settings

S = TypeVar("S", bound=HeadraceSettings)


@contextmanager
def ending_in_one_line() -> Iterator[None]:
    """End the process with one line and the status 78 (``EX_CONFIG``) when the block raises ConfigurationError."""
    try:
        yield
    except ConfigurationError as error:
        print(f"headrace: {error}", file=sys.stderr)
        raise SystemExit(os.EX_CONFIG) from None


def settings_or_end(kind: type[S]) -> S:
    """The settings of the environment; ends the process when they cannot be used."""
    with ending_in_one_line():
        return read_settings(kind)


def require_stores(settings: StoreSettings) -> None:
    """Raise ConfigurationError when Postgres or Redis refuses for good; opens one connection to each.

    A store that cannot be reached now raises nothing: the process waits for it.
    """
    require_session(settings.database_url)
    require_redis(settings.redis_url)
