"""``headrace submit``, ``status`` and ``cancel``: single jobs from the command line."""

import sys
import time
from typing import Annotated
from uuid import uuid4

import typer
from rich.console import Console

from api.commands.batch import batch_path, show
from api.commands.client import SUBMIT_PATIENCE_S, Api, patiently
from api.commands.errors import CommandError, NoAnswer
from api.commands.shell import URL, AsJson, KeyFile, Url, aside, connected, facts_table, output, print_json, told_once
from api.commands.streams import read_input
from api.commands.wording import Json, duration, moment, plain, usd
from api.local.by_hand import program
from models.textfiles import decode_text

UNFINISHED = frozenset({"queued", "in_progress"})
LONG_POLL_S = 30
Id = Annotated[str, typer.Argument(metavar="ID", help="A job's or a batch's id.")]
Wait = Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for the end.")]


def submit(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from the standard input.")],
    model: Annotated[str | None, typer.Option(help="An LLM's name, a tier's name, or auto.")] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told before the prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of the answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0: the likeliest answer.")] = None,
    wait: Wait = 0,
    url: Url = URL,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Submit one job; with --wait, print its answer.

    Ends with 0 when it was submitted (with --wait: completed), 1 when the job failed, 2 when it was refused, 3 when
    the API does not answer or the job did not end in time.
    """
    with connected(url, key_file, as_json) as api:
        body = _body(_read_prompt() if prompt == "-" else prompt, system)
        body |= {"model": model, "max_tokens": max_tokens, "temperature": temperature}
        body = {name: value for name, value in body.items() if value is not None}
        # With a key of its own, sending it again never makes a second job.
        key = {"idempotency-key": uuid4().hex}
        job = patiently(
            lambda: api.post("/v1/jobs", body, key),
            told_once(aside(), SUBMIT_PATIENCE_S),
            give_up_s=SUBMIT_PATIENCE_S,
        )
        if wait:
            job = await_job(api, job, wait)
        if as_json:
            print_json(job)
        elif not wait:
            output().print(job["id"], markup=False)
            aside().print(
                f"read its answer with: {program()} status {job['id']} --wait 60{api.target.flags}", soft_wrap=True
            )
        else:
            _print_answer(job)
        if wait:
            _end(job, api)


def status(id_: Id, wait: Wait = 0, url: Url = URL, key_file: KeyFile = None, as_json: AsJson = False) -> None:
    """Show a job or a batch as it is now."""
    with connected(url, key_file, as_json) as api:
        if _is_batch(id_):
            show(api.get(f"/v1/batches/{batch_path(id_)}"), as_json)
            return
        job = await_job(api, api.get(f"/status/{batch_path(id_)}"), wait)
        if as_json:
            print_json(job)
            return
        _print_job(job, output())


def cancel(id_: Id, url: Url = URL, key_file: KeyFile = None, as_json: AsJson = False) -> None:
    """Cancel a job or a batch."""
    with connected(url, key_file, as_json) as api:
        kind = "batches" if _is_batch(id_) else "jobs"
        cancelled = api.post(f"/v1/{kind}/{batch_path(id_)}/cancel")
        if as_json:
            print_json(cancelled)
        else:
            output().print(f"{cancelled['id']} is {plain(cancelled['status'])}", markup=False, soft_wrap=True)


def await_job(api: Api, job: Json, wait_s: float) -> Json:
    """The job once it has finished, or as it is after ``wait_s``; an absent API is waited for too."""
    deadline = time.monotonic() + wait_s
    while job["status"] in UNFINISHED and (left_s := deadline - time.monotonic()) > 0:
        job = _look(api, job["id"], left_s)
    return job


def _look(api: Api, job_id: str, left_s: float) -> Json:
    wait_s = min(LONG_POLL_S, int(left_s))
    if not wait_s:  # the API counts whole seconds
        time.sleep(left_s)
    return patiently(lambda: api.get(f"/status/{job_id}", wait=wait_s), give_up_s=left_s)


def _read_prompt() -> str:
    try:
        return decode_text(read_input())
    except ValueError as error:
        raise CommandError(f"the standard input is no prompt: {error}") from None


def _body(prompt: str, system: str | None) -> dict[str, object]:
    if not prompt.strip():
        raise CommandError("the prompt is empty")
    if system is None:
        return {"prompt": prompt}
    return {"messages": [{"role": "system", "content": system}, {"role": "user", "content": prompt}]}


def _is_batch(id_: str) -> bool:
    return id_.startswith("batch_")


def _print_answer(job: Json) -> None:
    """The answer alone on the standard output, as it is unless a terminal shows it; the rest aside."""
    if job["result"] is not None:
        text = job["result"]["text"]
        print(plain(text) if sys.stdout.isatty() else text)
    usage = job["usage"] or {"input_tokens": 0, "output_tokens": 0}
    facts = [
        job["id"],
        job["status"],
        f"{usage['input_tokens']} + {usage['output_tokens']} tokens",
        usd(job["cost_usd"]),
    ]
    aside().print(", ".join(map(plain, facts)), markup=False, soft_wrap=True)


def _end(job: Json, api: Api) -> None:
    if job["status"] in UNFINISHED:
        again = f"{program()} status {job['id']} --wait 60{api.target.flags}"
        raise NoAnswer(f"{job['id']} is {job['status']}; wait longer with: {again}")
    if job["error"] is not None:
        aside().print(f"headrace: {plain(job['error']['code'])}: {plain(job['error']['message'])}", markup=False)
    if job["status"] != "completed":
        raise typer.Exit(1)


def _print_job(job: Json, console: Console) -> None:
    facts = [("job", job["id"]), ("status", job["status"]), ("model", job["model"])]
    if job.get("batch_id"):
        facts.append(("batch", job["batch_id"]))
    facts += [(name.removesuffix("_at"), moment(job[name])) for name in ("created_at", "finished_at") if job[name]]
    facts += [(f"attempt {attempt['number']}", _attempt(attempt)) for attempt in job["attempts"]]
    if job["usage"]:
        facts.append(("tokens", f"{job['usage']['input_tokens']} in, {job['usage']['output_tokens']} out"))
    facts.append(("cost", usd(job["cost_usd"])))
    if job["error"]:
        facts.append(("error", f"{job['error']['code']}: {job['error']['message']}"))
    if job["result"]:
        facts.append(("answer", job["result"]["text"].strip()))
    console.print(facts_table([(name, plain(value)) for name, value in facts]))


def _attempt(attempt: Json) -> str:
    took = "" if attempt["duration_ms"] is None else f" after {duration(attempt['duration_ms'] / 1000)}"
    why = f": {attempt['error']['code']}" if attempt["error"] else ""
    return f"{attempt['model']}, {attempt['outcome'] or 'running'}{took}{why}"
