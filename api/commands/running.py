"""``headrace batch run``: a file and a prompt in, a file of answers out."""

import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import orjson
import typer

from api.commands.batchview import estimate_facts
from api.commands.client import SUBMIT_PATIENCE_S, Api, patiently
from api.commands.errors import CommandError
from api.commands.following import come_back, follow
from api.commands.requests import endpoint_of, submit_requests
from api.commands.shell import (
    URL,
    AsJson,
    KeyFile,
    Output,
    Url,
    aside,
    connected,
    facts_table,
    output,
    print_json,
    told_once,
)
from api.commands.transfer import announce, check_target, upload
from api.commands.wording import Json, plain, rows, usd
from api.local.by_hand import program
from models.textfiles import read_text


class InputFormat(StrEnum):
    """The format of a batch's file."""

    CSV = "csv"
    JSONL = "jsonl"
    XLSX = "xlsx"


class Priority(StrEnum):
    """A batch's place among the batches of its tenant."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


InputFile = Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="CSV, JSONL or XLSX.")]
TextFile = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A file with the template.")]
JsonFile = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A JSON file: the answers' form.")]


def run_batch(
    file: InputFile,
    prompt: Annotated[str | None, typer.Option(help="A template, such as 'Classify: {{text}}'.")] = None,
    prompt_file: TextFile = None,
    system: Annotated[str | None, typer.Option(help="What the model is told before each prompt.")] = None,
    model: Annotated[str | None, typer.Option(help="An LLM's name, a tier's name, or auto.")] = None,
    out: Output = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of each answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0: the likeliest answer.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="As in OpenAI's API.")] = None,
    seed: Annotated[int | None, typer.Option(help="As in OpenAI's API.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A string at which answers end; up to four.")] = None,
    response_format: JsonFile = None,
    id_column: Annotated[str | None, typer.Option(help="The column that names each row.")] = None,
    input_format: Annotated[
        InputFormat | None, typer.Option("--format", help="The file's, if not by its name.")
    ] = None,
    delimiter: Annotated[str | None, typer.Option(help="Of a CSV file, if not the one that is found.")] = None,
    encoding: Annotated[str | None, typer.Option(help="Of a CSV file, if not UTF-8, such as windows-1252.")] = None,
    dedupe: Annotated[bool, typer.Option("--dedupe", help="Compute rows with the same request once.")] = False,
    max_parallel: Annotated[int | None, typer.Option(min=1, help="Rows at a time, at most.")] = None,
    priority: Annotated[Priority | None, typer.Option(help="Among your batches.")] = None,
    window: Annotated[str | None, typer.Option(help="The time for all rows, such as 1h or 24h.")] = None,
    max_cost: Annotated[str | None, typer.Option(help="Refuse if the worst case is dearer, in USD.")] = None,
    name: Annotated[str | None, typer.Option(help="What to call the batch.")] = None,
    user: Annotated[str | None, typer.Option(help="Your user, for attribution.")] = None,
    team: Annotated[str | None, typer.Option(help="Your team, for attribution.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Kept with the batch.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and estimate; submit nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before submitting.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Submit, and do not watch.")] = False,
    url: Url = URL,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Run every row of a file through a model, and write the answers beside the rows.

    Ends with 0 when all rows completed, 1 when some did not, 2 when the file or a flag was refused, 3 when the API
    does not answer, and 130 after Ctrl-C, which leaves the batch running.
    """
    with connected(url, key_file, as_json) as api:
        order = Order(
            file,
            {
                "prompt": _template(prompt, prompt_file),
                "system": system,
                "model": model,
                "max_tokens": max_tokens,
                "temperature": temperature,
                "top_p": top_p,
                "seed": seed,
                "stop": stop,
                "response_format": response_format and _json_object(response_format),
                "id_column": id_column,
                "format": input_format,
                "delimiter": delimiter,
                "encoding": encoding,
                "dedupe": dedupe or None,
                "max_parallel": max_parallel,
                "priority": priority,
                "completion_window": window,
                "max_cost_usd": max_cost,
                "name": name,
                "user": user,
                "team": team,
                "metadata": _metadata(metadata or ()),
            },
        )
        if out is not None:
            check_target(out, file)
        if dry_run:
            _print_estimate(order.estimate(api), as_json)
            return
        if not (yes or as_json):
            _ask(api, order)
        _submit_and_follow(api, order, out, detach, as_json)


class Order:
    """A file, and the values of the flags by the names of the form's fields.

    ``endpoint`` is set for a file of OpenAI's requests, which the API checks when it makes the batch.
    """

    def __init__(self, file: Path, values: Mapping[str, object]) -> None:
        self._file = file
        self._values = values
        self.endpoint = endpoint_of(file) if values["prompt"] is None else None

    def estimate(self, api: Api) -> Json:
        """The estimated cost. Nothing is recorded. Raises Refused."""
        if self.endpoint is not None:
            raise CommandError("there is no estimate of a file of OpenAI's requests; its batch fails if they are wrong")
        console = aside()
        announce(self._file, console)
        return upload(api, self._file, {**form_fields(self._values), "dry_run": "true"}, console)

    def submit(self, api: Api) -> Json:
        """Make the batch. Raises Refused."""
        if self.endpoint is not None:
            return submit_requests(api, self._file, self.endpoint, self._values, aside())
        fields, key, console = form_fields(self._values), uuid4().hex, aside()
        announce(self._file, console)
        return patiently(
            lambda: upload(api, self._file, fields, console, key=key),
            told_once(console, SUBMIT_PATIENCE_S),
            give_up_s=SUBMIT_PATIENCE_S,
        )


def form_fields(values: Mapping[str, object]) -> dict[str, str]:
    """The fields of an upload's form. Values that were not given are left out; values that are not text become JSON."""
    return {
        name: value if isinstance(value, str) else orjson.dumps(value).decode()
        for name, value in values.items()
        if value is not None and value != [] and value != {}
    }


def _submit_and_follow(api: Api, order: Order, out: Path | None, detach: bool, as_json: bool) -> None:
    console = aside()
    try:
        batch = order.submit(api)
    except KeyboardInterrupt:
        shown = f"`{program()} batch list` shows whether it was accepted"
        console.print(f"interrupted while the file was sent; {shown}", markup=False, soft_wrap=True)
        raise
    total = int(batch["counts"]["total"])
    known = f"{rows(total)}, at worst {usd(batch['reserved_usd'])}" if total else "its file is being checked"
    console.print(f"{batch['id']}: {known}", markup=False, soft_wrap=True)
    if not detach:
        follow(api, batch, out, as_json)
    elif as_json:
        print_json(batch)
    else:
        console.print("watch it with", markup=False)
        output().print(come_back(api, batch, out), markup=False, soft_wrap=True)


def _ask(api: Api, order: Order) -> None:
    """At a terminal, show the estimate and end the command unless the person agrees."""
    if order.endpoint is None and sys.stdin.isatty() and sys.stderr.isatty():
        aside().print(facts_table(estimate_facts(order.estimate(api))))
        try:
            agreed = typer.confirm("Submit?", default=True, err=True)
        except typer.Abort:
            raise KeyboardInterrupt from None
        if not agreed:
            raise typer.Exit(1)


def _print_estimate(estimate: Json, as_json: bool) -> None:
    if as_json:
        print_json(estimate)
    else:
        output().print(facts_table(estimate_facts(estimate)))


def _template(prompt: str | None, prompt_file: Path | None) -> str | None:
    if prompt_file is None:
        return prompt
    if prompt is not None:
        raise CommandError("give one of --prompt and --prompt-file")
    try:
        return read_text(prompt_file).replace("\r\n", "\n")
    except ValueError as error:
        raise CommandError(f"{plain(prompt_file)}: {error}") from None


def _json_object(file: Path) -> object:
    try:
        parsed: object = orjson.loads(read_text(file))
    except orjson.JSONDecodeError as error:
        raise CommandError(f"{plain(file)} is not JSON: {error}") from None
    except ValueError as error:
        raise CommandError(f"{plain(file)}: {error}") from None
    return parsed


def _metadata(given: Sequence[str]) -> dict[str, str]:
    parted = [pair.partition("=") for pair in given]
    wrong = [plain(key) for key, equals, _ in parted if not (key and equals)]
    if wrong:
        raise CommandError(f"--metadata takes KEY=VALUE, not {wrong[0]!r}")
    return {key: value for key, _, value in parted}
