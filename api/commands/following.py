"""Following a batch to its end: watch it, fetch its results, say what came of it, or how to come back."""

import shlex
from pathlib import Path

import typer
from rich.console import Console

from api.commands.batchview import print_errors, succeeded, summary
from api.commands.client import Api
from api.commands.errors import CommandError, NoAnswer
from api.commands.shell import INTERRUPTED, aside, print_json
from api.commands.transfer import STANDARD_OUTPUT, fetch_results, format_of
from api.commands.watching import view_for, watch
from api.commands.wording import Json, plain, size
from api.local.by_hand import program


def follow(api: Api, batch: Json, out: Path | None, as_json: bool) -> None:
    """Watch a batch to its end and write its results; ends with 0 when all rows completed, else with 1.

    Ctrl-C leaves the batch running; so does an API that stays away (NoAnswer).
    """
    console = aside()
    try:
        batch = watch(api, batch, view_for(console))
        written = _fetch(api, batch, out, console)
    except KeyboardInterrupt:
        console.print(_interrupted(batch), markup=False, soft_wrap=True)
        console.print(f"    {come_back(api, batch, out)}", markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    except NoAnswer as error:
        raise NoAnswer(
            f"{error}\nThe batch goes on without you; come back with\n    {come_back(api, batch, out)}"
        ) from None
    console.print(summary(batch), markup=False, soft_wrap=True)
    if written is not None:
        console.print(f"wrote {plain(out)} ({size(written)})", markup=False, soft_wrap=True)
    print_errors(batch, console)
    _say_what_next(api, batch, out, console)
    if as_json:
        print_json(batch)
    raise typer.Exit(_exit_code(batch))


def come_back(api: Api, batch: Json, out: Path | None) -> str:
    """The command that watches a batch again."""
    target = "" if out is None else f" -o {shlex.quote(str(out))}"
    return f"{program()} batch watch {batch['id']}{target}{api.target.flags}"


def _fetch(api: Api, batch: Json, out: Path | None, console: Console) -> int | None:
    """A batch whose file was refused has no results."""
    if out is None or batch["status"] == "failed":
        return None
    written = fetch_results(api, batch["id"], out, {"format": format_of(out)}, console)
    return None if out == STANDARD_OUTPUT else written


def _interrupted(batch: Json) -> str:
    return f"{batch['id']} goes on without you. Come back with"


def _say_what_next(api: Api, batch: Json, out: Path | None, console: Console) -> None:
    flags = api.target.flags
    lines = []
    if out is None and batch["status"] != "failed":
        lines.append(f"read the results with: {program()} batch results {batch['id']} -o out.csv{flags}")
    if batch["counts"]["failed"] or batch["counts"]["expired"]:
        again = "" if out is None else f" -o {shlex.quote(str(out))}"
        lines.append(f"try these rows again with: {program()} batch retry {batch['id']}{again}{flags}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _exit_code(batch: Json) -> int:
    if batch["status"] == "failed":
        return CommandError.exit_code
    return 0 if succeeded(batch) else 1
