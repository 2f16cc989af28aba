"""``headrace keys``: API keys, for who runs Headrace; the only commands here that need its database."""

from typing import Annotated

import typer
from rich.console import Console

from api.commands.parser import Commands
from api.commands.shell import database_url, in_one_line

keys = Commands(help="API keys, for who runs Headrace; needs HEADRACE_DATABASE_URL.")

KeyName = Annotated[str, typer.Argument(help="The key, or its first part as `headrace keys list` shows it.")]

# api.keys is imported by the commands that need it: `headrace up` lives long, and stays small without SQLAlchemy.


@keys.command("create")
def create_key(
    tenant: Annotated[str, typer.Option(help="Who pays; made if it does not exist.")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "default",
    plan: Annotated[str | None, typer.Option(help="Its rate limits, such as free or pro.", show_default="none")] = None,
) -> None:
    """Make an API key and print it; it cannot be shown again."""
    with in_one_line():
        from api.keys import make_key

        print(make_key(database_url(), tenant, name, plan))


@keys.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Of this tenant only.", show_default="all")] = None,
) -> None:
    """Show the API keys with their plans, without their secrets."""
    with in_one_line():
        from api.keys import key_table, list_all_keys

        Console().print(key_table(list_all_keys(database_url(), tenant)))


@keys.command("plan")
def change_plan(key: KeyName, plan: Annotated[str, typer.Argument(help="A plan, or none.")]) -> None:
    """Give an API key other rate limits; running APIs follow within seconds."""
    with in_one_line():
        from api.keys import change_key_plan

        change_key_plan(database_url(), key, plan)


@keys.command("revoke")
def revoke_key(key: KeyName) -> None:
    """End an API key for good; running APIs follow within seconds."""
    with in_one_line():
        from api.keys import revoke_named_key

        revoke_named_key(database_url(), key)
