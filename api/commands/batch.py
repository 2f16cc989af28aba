"""``headrace batch``: many rows from a file, watched, steered and fetched."""

from enum import StrEnum
from typing import Annotated
from urllib.parse import urlencode

import typer

from api.commands.batchview import batch_facts, batch_table, print_errors
from api.commands.client import Api
from api.commands.following import come_back, follow
from api.commands.parser import Commands
from api.commands.running import run_batch
from api.commands.shell import URL, AsJson, KeyFile, Output, Url, aside, connected, output, print_json
from api.commands.transfer import STANDARD_OUTPUT, check_target, fetch_results, format_of
from api.commands.wording import Json, plain, size
from api.local.by_hand import program

batches = Commands(help="Batches: a spreadsheet, or a million rows.")
batches.command("run")(run_batch)

BatchId = Annotated[str, typer.Argument(metavar="ID", help="The batch's id.")]


class ResultFormat(StrEnum):
    """A results format."""

    CSV = "csv"
    JSONL = "jsonl"


class RowOrder(StrEnum):
    """The order of results."""

    INPUT = "input"
    FINISHED = "finished"


@batches.command("watch")
def watch_batch(
    batch_id: BatchId, out: Output = None, url: Url = URL, key_file: KeyFile = None, as_json: AsJson = False
) -> None:
    """Watch a batch to its end, and write its results. Ctrl-C leaves it running."""
    with connected(url, key_file, as_json) as api:
        if out is not None:
            check_target(out)
        follow(api, api.get(f"/v1/batches/{batch_path(batch_id)}"), out, as_json)


@batches.command("list")
def list_batches(
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20,
    after: Annotated[str | None, typer.Option(metavar="ID", help="Those that are older than this one.")] = None,
    url: Url = URL,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Show your batches, newest first."""
    with connected(url, key_file, as_json) as api:
        page = api.get("/v1/batches", limit=limit, after=after)
        if as_json:
            print_json(page)
            return
        console = output()
        console.print(batch_table(page["data"], console.width))
        if page["has_more"]:
            aside().print(
                f"older ones: {program()} batch list --after {page['last_id']}{api.target.flags}", soft_wrap=True
            )


@batches.command("show")
def show_batch(batch_id: BatchId, url: Url = URL, key_file: KeyFile = None, as_json: AsJson = False) -> None:
    """Show a batch as it is now."""
    with connected(url, key_file, as_json) as api:
        show(api.get(f"/v1/batches/{batch_path(batch_id)}"), as_json)


@batches.command("pause")
def pause_batch(batch_id: BatchId, url: Url = URL, key_file: KeyFile = None, as_json: AsJson = False) -> None:
    """Let no further row start; those that run go on to their end."""
    with connected(url, key_file, as_json) as api:
        _steer(api, batch_id, "pause", as_json)


@batches.command("resume")
def resume_batch(batch_id: BatchId, url: Url = URL, key_file: KeyFile = None, as_json: AsJson = False) -> None:
    """Let a paused batch go on."""
    with connected(url, key_file, as_json) as api:
        _steer(api, batch_id, "resume", as_json)


@batches.command("cancel")
def cancel_batch(batch_id: BatchId, url: Url = URL, key_file: KeyFile = None, as_json: AsJson = False) -> None:
    """End a batch: rows that run are stopped, rows that finished stay."""
    with connected(url, key_file, as_json) as api:
        _steer(api, batch_id, "cancel", as_json)


@batches.command("retry")
def retry_batch(
    batch_id: BatchId,
    only: Annotated[
        str | None,
        typer.Option(metavar="ENDS", help="Rows that ended so: failed, cancelled, expired; else all of these."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Watch it to its end.")] = False,
    out: Output = None,
    url: Url = URL,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Run the rows again that ended without an answer, and only those."""
    with connected(url, key_file, as_json) as api:
        if out is not None:
            check_target(out)
        if not watch and out is None:
            batch = _steer(api, batch_id, _retry(only), as_json)
            aside().print(f"watch it with: {come_back(api, batch, None)}", markup=False, soft_wrap=True)
            return
        follow(api, api.post(f"/v1/batches/{batch_path(batch_id)}/{_retry(only)}"), out, as_json)


@batches.command("results")
def get_results(
    batch_id: BatchId,
    out: Output = None,
    form: Annotated[
        ResultFormat | None, typer.Option("--format", help="Of the results.", show_default="by the name of -o, or csv")
    ] = None,
    order: Annotated[RowOrder, typer.Option(help="Of the rows.")] = RowOrder.INPUT,
    raw: Annotated[bool, typer.Option("--raw", help="Leave CSV cells that a spreadsheet would execute.")] = False,
    url: Url = URL,
    key_file: KeyFile = None,
) -> None:
    """Fetch what has finished so far; without -o, to the standard output."""
    with connected(url, key_file) as api:
        target = out or STANDARD_OUTPUT
        check_target(target)
        chosen = form.value if form else format_of(target)
        asked = {"format": chosen, "order": order.value, "raw": "true" if raw else None}
        written = fetch_results(api, batch_path(batch_id), target, asked, aside())
        if target != STANDARD_OUTPUT:
            aside().print(f"wrote {plain(target)} ({size(written)})", markup=False, soft_wrap=True)


def batch_path(batch_id: str) -> str:
    """An id as a part of a path; what is none of the API's ids leads nowhere there."""
    return "".join(char for char in batch_id if char.isalnum() or char in "_-") or "-"


def show(batch: Json, as_json: bool) -> None:
    """Print a batch."""
    if as_json:
        print_json(batch)
        return
    output().print(batch_facts(batch))
    print_errors(batch, aside())


def _retry(only: str | None) -> str:
    return "retry" if only is None else f"retry?{urlencode({'status': only})}"


def _steer(api: Api, batch_id: str, order: str, as_json: bool) -> Json:
    batch = api.post(f"/v1/batches/{batch_path(batch_id)}/{order}")
    if as_json:
        print_json(batch)
    else:
        output().print(f"{batch['id']} is {plain(batch['status'])}", markup=False, soft_wrap=True)
    return batch
