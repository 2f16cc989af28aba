"""Making, showing, changing and revoking API keys from the command line."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from rich.markup import escape
from rich.table import Column, Table
from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncEngine

from api.local.by_hand import program
from api.local.database import database_errors_as_sentences
from api.local.errors import LocalError, SettingsError
from models import account
from models.catalog import read_catalog
from models.database import create_engine, fetch_all
from models.errors import ConfigurationError
from models.settings import CatalogSettings, read_settings

T = TypeVar("T")

NO_PLAN = "none"


def make_key(database_url: str, tenant: str, name: str, plan: str | None = None) -> str:
    """A new API key of a tenant, which is made if it does not exist; the key cannot be had again.

    Raises LocalError when the catalogue has no such plan.
    """
    plan = _known_plan(plan)

    async def make(engine: AsyncEngine) -> str:
        return await account.create_key(engine, await account.create_tenant(engine, tenant), name, plan)

    return _run(database_url, make)


def list_all_keys(database_url: str, tenant: str | None = None) -> Sequence[RowMapping]:
    """Every key, or a tenant's: what may be shown of it, oldest first."""
    return _run(database_url, lambda engine: fetch_all(engine, account.select_keys(tenant)))


def change_key_plan(database_url: str, key: str, plan: str) -> None:
    """Give a key another plan, or ``none``; raises LocalError when there is no such key or plan."""
    lookup, known = _lookup_of(key), _known_plan(plan)
    _found(_run(database_url, lambda engine: account.change_plan(engine, lookup, known)), lookup)


def revoke_named_key(database_url: str, key: str) -> None:
    """End a key; raises LocalError when there is no such key."""
    lookup = _lookup_of(key)
    _found(_run(database_url, lambda engine: account.revoke_key(engine, lookup)), lookup)


def key_table(rows: Sequence[RowMapping]) -> Table:
    """Keys as a table for people."""
    table = Table(Column("key", no_wrap=True), "tenant", "name", "plan", "made", "state", box=None, pad_edge=False)
    now = datetime.now(UTC)
    for row in rows:
        made = row["created_at"].astimezone(UTC).strftime("%Y-%m-%d %H:%M")
        named = [f"hr_{row['lookup']}", row["tenant"], row["name"], row["plan"] or NO_PLAN]
        table.add_row(*map(escape, named), made, _state(row, now))
    return table


def _state(row: RowMapping, now: datetime) -> str:
    if row["revoked_at"] is not None:
        return "revoked"
    return "expired" if row["expires_at"] is not None and row["expires_at"] <= now else "live"


def _lookup_of(key: str) -> str:
    """The lookup part of a key's full text, or of the first part that a list shows."""
    prefix, _, rest = key.partition("_")
    return rest.partition("_")[0] if prefix == "hr" else key


def _known_plan(plan: str | None) -> str | None:
    """A plan that the catalogue of HEADRACE_CATALOG has; raises LocalError."""
    if plan is None or plan == NO_PLAN:
        return None
    try:
        plans = read_catalog(read_settings(CatalogSettings).catalog).plans
    except ConfigurationError as error:
        raise SettingsError(str(error)) from error
    if plan not in plans:
        raise LocalError(f"there is no plan {plan!r}; the catalogue has {', '.join(plans)}")
    return plan


def _found(found: bool, lookup: str) -> None:
    if not found:
        raise LocalError(f"there is no API key hr_{lookup}; `{program()} keys list` shows them")


def _run(database_url: str, work: Callable[[AsyncEngine], Awaitable[T]]) -> T:
    """Do some work in the database; raises LocalError when that refuses."""

    async def run() -> T:
        engine = create_engine(database_url, name="keys", pool_size=1)
        try:
            return await work(engine)
        finally:
            await engine.dispose()

    with database_errors_as_sentences(database_url):
        return asyncio.run(run())
