"""The command line ``headrace``: each command is a few lines here and its work elsewhere."""

import os
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from api.commands.batch import batches
from api.commands.job import cancel, status, submit
from api.commands.keys import keys
from api.commands.parser import Commands
from api.commands.shell import database_url, in_one_line
from api.commands.streams import prepare_streams, written_out
from api.commands.usage import usage
from api.local.by_hand import program
from api.local.demo import PROMPT
from api.local.demo import demo as run_demo
from api.local.health import show_health
from api.local.stack import LOOPBACK, StackOptions
from api.local.up import up as run_up

commands = Commands(
    name="headrace",
    help="Asynchronous LLM jobs on a queue: submit, poll, get the answer.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (submit, status, cancel, usage):
    commands.command()(command)
commands.add_typer(batches, name="batch")
commands.add_typer(keys, name="keys")

DataDir = Annotated[
    Path,
    typer.Option(envvar="HEADRACE_DATA_DIR", help="Where databases, keys and logs are kept.", show_default=True),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"headrace {version('headrace')}")
        raise typer.Exit


@commands.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@commands.command()
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
    with in_one_line():
        run_up(options, os.environ)


@commands.command()
def demo(
    prompt: Annotated[str, typer.Option(help="What to ask.")] = PROMPT,
    data_dir: Annotated[Path, typer.Option(help="Where the demo keeps its databases.")] = Path(".headrace/demo"),
) -> None:
    """Start everything, ask a real model one question, show where the time went, stop everything."""
    with in_one_line():
        run_demo(data_dir, os.environ, prompt)


@commands.command()
def migrate() -> None:
    """Bring the tables of HEADRACE_DATABASE_URL to the newest revision."""
    with in_one_line():
        # Imported here because only this command needs the database libraries; `up` lives long and stays small.
        from api.local.provision import migrate_or_say_why

        migrate_or_say_why(database_url())


@commands.command()
def health(
    url: Annotated[str, typer.Option(help="The API's base URL.")] = f"http://{LOOPBACK}:8000",
) -> None:
    """Show the health of every part; exits with 1 unless all are well."""
    with in_one_line():
        if not show_health(url, Console()):
            raise typer.Exit(1)


def main() -> None:
    """Run the command that the arguments name; the process ends with its exit code."""
    prepare_streams()
    with written_out():
        commands(prog_name=program())


if __name__ == "__main__":
    main()
