"""``headrace usage``: what was used, and what it cost."""

import sys
from typing import Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from api.commands.errors import CommandError
from api.commands.shell import URL, AsJson, KeyFile, Url, aside, connected, output, print_json
from api.commands.wording import Json, count, plain, usd

_NUMBERS = ("jobs", "attempts", "input_tokens", "output_tokens")


def usage(
    group_by: Annotated[str, typer.Option(help="Any of model, team, user, key, day; commas between them.")] = "model",
    start: Annotated[
        str | None, typer.Option("--from", help="A day or a time, UTC.", show_default="30 days ago")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="Up to before this day or time.", show_default="now")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    url: Url = URL,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what was used, and what it cost."""
    with connected(url, key_file, as_json) as api:
        if as_csv and as_json:
            raise CommandError("give one of --csv and --json")
        asked = {"group_by": group_by, "from": start, "to": end}
        if as_csv:
            sys.stdout.write(api.get_text("/v1/usage", **asked, format="csv"))
            return
        report = api.get("/v1/usage", **asked)
        if as_json:
            print_json(report)
            return
        output().print(_table(report["data"]))
        if not report["data"]:
            aside().print("nothing was used in this time")


def _table(data: list[Json]) -> Table:
    groups = [name for name in (data[0] if data else {}) if name not in (*_NUMBERS, "cost_usd")]
    right = [Column(name.replace("_", " "), justify="right") for name in (*_NUMBERS, "cost")]
    table = Table(*groups, *right, box=None, pad_edge=False)
    for row in data:
        named = [plain(row[name] if row[name] is not None else "-") for name in groups]
        numbers = [count(int(row[name])) for name in _NUMBERS]
        table.add_row(*(Text(cell) for cell in (*named, *numbers, usd(row["cost_usd"]))))
    return table
