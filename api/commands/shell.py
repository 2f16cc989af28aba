"""What the commands share: their options, their output, and how each of them ends."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from api.commands.client import DEFAULT_URL, Api, Target
from api.commands.errors import CommandError, Fault, Refused
from api.commands.wording import count, plain
from api.local.errors import LocalError, StartError
from api.local.settings import database_url_of

INTERRUPTED = 130
SHOWN_FAULTS = 20
NO_TERMINAL_WIDTH = 200

Url = Annotated[str, typer.Option("--url", envvar="HEADRACE_URL", help="The API's base URL.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        envvar="HEADRACE_KEY_FILE",
        help="A file with the API key.",
        show_default="HEADRACE_API_KEY, or <data dir>/api_key",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Write the results here: CSV, or JSONL if the name ends so."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the API's JSON, for scripts.")]
URL = DEFAULT_URL


def output() -> Console:
    """Where results go; where that is no terminal, lines may be long."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = NO_TERMINAL_WIDTH
    return console


def aside() -> Console:
    """Where people are told what happens, apart from results."""
    return Console(stderr=True, highlight=False)


@contextmanager
def in_one_line(as_json: bool = False) -> Iterator[None]:
    """Show an expected error as a line, with what belongs to it, and end with its exit code."""
    try:
        yield
    except LocalError as error:
        _show(error, as_json)
        raise typer.Exit(error.exit_code) from None
    except BrokenPipeError:
        raise  # the reader had enough; the command line ends quietly
    except OSError as error:
        print(f"headrace: {plain(_said(error))}", file=sys.stderr)
        raise typer.Exit(1) from None
    except (UnicodeError, orjson.JSONEncodeError):
        print("headrace: an argument is not UTF-8", file=sys.stderr)
        raise typer.Exit(CommandError.exit_code) from None
    except KeyboardInterrupt:
        print("headrace: interrupted", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def _said(error: OSError) -> str:
    """The file and the system's message, without the number of the error."""
    if error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{os.fsdecode(error.filename)}: {error.strerror}"


def told_once(console: Console, patience_s: float) -> Callable[[str], None]:
    """For :func:`patiently`: prints the first trouble and how long the command tries again, and no further ones."""
    told = False

    def tell(text: str) -> None:
        nonlocal told
        if not told:
            console.print(f"{plain(text)}; trying again for {patience_s:g} s", markup=False, soft_wrap=True)
        told = True

    return tell


@contextmanager
def connected(url: str, key_file: Path | None, as_json: bool = False) -> Iterator[Api]:
    """A connection to the API, with every expected error shown."""
    with in_one_line(as_json), Api(Target(url, key_file)) as api:
        yield api


def database_url() -> str:
    """The database of the commands that need one; raises SettingsError when none is named."""
    return database_url_of(os.environ)


def print_json(document: object) -> None:
    """Print JSON as it came."""
    sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n")
    sys.stdout.flush()


def print_fault_table(faults: Sequence[Fault], console: Console, total: int = 0) -> None:
    """What is wrong, as a small table; the first of ``total``, when they are many."""
    lined = any(fault.line is not None for fault in faults)
    table = Table(*(["line"] if lined else []), "field", "problem", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for fault in faults[:SHOWN_FAULTS]:
        line = [count(fault.line) if fault.line is not None else ""] if lined else []
        table.add_row(*(Text(cell) for cell in (*line, fault.field, fault.message)))
    console.print(table)
    more = max(total, len(faults)) - min(len(faults), SHOWN_FAULTS)
    if more:
        console.print(f"and {count(more)} more")


def facts_table(facts: Sequence[tuple[str, str]], title: str | None = None) -> Table:
    """Names and values, one pair a line."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, Text(value))
    return table


def _show(error: LocalError, as_json: bool) -> None:
    for line in error.details if isinstance(error, StartError) else ():
        print(f"    {line}", file=sys.stderr)
    if isinstance(error, Refused) and as_json:
        print_json(error.document)
    print(f"headrace: {plain(error)}", file=sys.stderr)
    if isinstance(error, Refused) and not as_json:
        _show_particulars(error, aside())


def _show_particulars(refused: Refused, console: Console) -> None:
    # One fault without a line is what the sentence said already.
    if len(refused.faults) > 1 or any(fault.line is not None for fault in refused.faults):
        print_fault_table(refused.faults, console, refused.fault_count)
    if refused.facts:
        console.print(facts_table(refused.facts))
