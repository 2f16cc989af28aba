"""The console script ``headrace``: each command is a few lines here and its work elsewhere."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from api.local.demo import PROMPT
from api.local.demo import demo as run_demo
from api.local.errors import LocalError, StartError
from api.local.health import show_health
from api.local.stack import LOOPBACK, StackOptions
from api.local.up import up as run_up

main = typer.Typer(
    name="headrace",
    help="Asynchronous LLM jobs on a queue: submit, poll, get the answer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DataDir = Annotated[
    Path,
    typer.Option(envvar="HEADRACE_DATA_DIR", help="Where databases, keys and logs are kept.", show_default=True),
]


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Show an expected error as a line (and what a failed process wrote last), and exit with 1."""
    try:
        yield
    except LocalError as error:
        for line in error.details if isinstance(error, StartError) else ():
            print(f"    {line}", file=sys.stderr)
        print(f"headrace: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except OSError as error:
        print(f"headrace: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


def _database_url() -> str:
    url = os.environ.get("HEADRACE_DATABASE_URL")
    if not url:
        raise LocalError("set HEADRACE_DATABASE_URL; `headrace up` has a database of its own")
    return url


@main.command()
def up(
    host: Annotated[str, typer.Option(help="The address that the API listens on.")] = LOOPBACK,
    port: Annotated[
        int | None, typer.Option(help="The API's port.", show_default="8000, or a free one", min=1, max=65535)
    ] = None,
    data_dir: DataDir = Path(".headrace"),
    flower: Annotated[bool, typer.Option("--flower/--no-flower", help="Show the queues with Flower.")] = True,
    flower_port: Annotated[
        int | None, typer.Option(help="Flower's port.", show_default="5555, or a free one", min=1, max=65535)
    ] = None,
) -> None:
    """Start everything on this machine, and stop it with Ctrl-C.

    Embedded servers take the place of HEADRACE_DATABASE_URL and HEADRACE_REDIS_URL where these are not set.
    """
    options = StackOptions(host=host, port=port, data_dir=data_dir, flower=flower, flower_port=flower_port)
    with _in_one_line():
        run_up(options, os.environ)


@main.command()
def demo(
    prompt: Annotated[str, typer.Option(help="What to ask.")] = PROMPT,
    data_dir: Annotated[Path, typer.Option(help="Where the demo keeps its databases.")] = Path(".headrace/demo"),
) -> None:
    """Start everything, ask a real model one question, show where the time went, stop everything."""
    with _in_one_line():
        run_demo(data_dir, os.environ, prompt)


@main.command()
def migrate() -> None:
    """Bring the tables of HEADRACE_DATABASE_URL to the newest revision."""
    # Imported here because only this command needs the database libraries; `up` lives long and stays small.
    from models.database import migrate as run_migrations

    with _in_one_line():
        run_migrations(_database_url())


KeyName = Annotated[str, typer.Argument(help="The key, or its first part as `headrace keys list` shows it.")]

keys = typer.Typer(help="API keys.", no_args_is_help=True)
main.add_typer(keys, name="keys")


@keys.command("create")
def create_key(
    tenant: Annotated[str, typer.Option(help="Who pays; made if it does not exist.")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "default",
    plan: Annotated[str | None, typer.Option(help="Its rate limits, such as free or pro.", show_default="none")] = None,
) -> None:
    """Make an API key and print it; it cannot be shown again."""
    from api.keys import make_key

    with _in_one_line():
        print(make_key(_database_url(), tenant, name, plan))


@keys.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Of this tenant only.", show_default="all")] = None,
) -> None:
    """Show the API keys with their plans, without their secrets."""
    from api.keys import key_table, list_all_keys

    with _in_one_line():
        Console().print(key_table(list_all_keys(_database_url(), tenant)))


@keys.command("plan")
def change_plan(key: KeyName, plan: Annotated[str, typer.Argument(help="A plan, or none.")]) -> None:
    """Give an API key other rate limits; running APIs follow within seconds."""
    from api.keys import change_key_plan

    with _in_one_line():
        change_key_plan(_database_url(), key, plan)


@keys.command("revoke")
def revoke_key(key: KeyName) -> None:
    """End an API key for good; running APIs follow within seconds."""
    from api.keys import revoke_named_key

    with _in_one_line():
        revoke_named_key(_database_url(), key)


@main.command()
def health(
    url: Annotated[str, typer.Option(help="The API's base URL.")] = f"http://{LOOPBACK}:8000",
) -> None:
    """Show the health of every part; exits with 1 unless all are well."""
    with _in_one_line():
        if not show_health(url, Console()):
            raise typer.Exit(1)


if __name__ == "__main__":
    main()
