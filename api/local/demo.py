"""``headrace demo``: start everything, run one real prompt and a small batch as a user would, show them, stop."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from api.local.by_hand import batch_commands, curl_commands, program
from api.local.demo_batch import COUNTRIES, TEMPLATE, report_batch, run_batch
from api.local.errors import Interrupted, LocalError, StartError, Stopped
from api.local.logs import indent, tail
from api.local.stack import KEY_FILE, LOOPBACK, USUAL_PORT, Running, StackOptions, running_stack

PROMPT = "Explain in two sentences why a job queue needs a database."
MAX_TOKENS = 96
JOB_TIMEOUT_S = 300.0
LONG_POLL_S = 20
TERMINAL_STATUSES = frozenset({"completed", "failed", "cancelled", "expired"})

Job = dict[str, Any]  # Any: JSON


def demo(data_dir: Path, environment: Mapping[str, str], prompt: str = PROMPT) -> None:
    """Run the demonstration and print it. Raises LocalError when any step of it fails."""
    console = Console()
    began = time.monotonic()
    try:
        with console.status("starting") as status:

            def progress(text: str) -> None:
                status.update(f"{text} ...")
                if not console.is_terminal:
                    console.print(f"{text} ...")

            options = StackOptions(data_dir=data_dir, flower=False)
            with running_stack(options, environment, progress=progress) as running:
                ready_s = time.monotonic() - began
                progress(f"asking at {running.api_url}")
                job = running.supervisor.run_during(lambda: ask(running, prompt, progress))
                batch, rows = running.supervisor.run_during(lambda: ask_many(running, progress))
    except Interrupted:
        raise Stopped("interrupted; everything is stopped") from None
    console.print(report(prompt, job, ready_s))
    console.print()
    console.print(report_batch(batch, rows))
    console.print(f"\nThe same by hand, while `{program()} up` runs:\n", style="bold")
    by_hand = curl_commands(f"http://{LOOPBACK}:{USUAL_PORT}", Path(".headrace", KEY_FILE), _body(prompt))
    by_hand += ["", *batch_commands(["country", *COUNTRIES], TEMPLATE)]
    # As it is: a wrapped command could not be copied.
    console.print(indent(by_hand, "  "), soft_wrap=True, markup=False, highlight=False)


def ask(running: Running, prompt: str, progress: Callable[[str], None]) -> Job:
    """Submit a prompt over HTTP and wait for its end.

    Raises LocalError when the API refuses, and StartError with the processes' last lines when the job fails.
    """
    with _client(running) as client:
        job = _json(client.post("/v1/jobs", json=_body(prompt)))
        deadline = time.monotonic() + JOB_TIMEOUT_S
        while job["status"] not in TERMINAL_STATUSES and time.monotonic() < deadline:
            progress(f"{job['id']} is {job['status']}")
            job = _json(client.get(job["status_url"], params={"wait": LONG_POLL_S}))
    if job["status"] != "completed":
        reason = job["error"]["message"] if job["error"] else f"not finished within {JOB_TIMEOUT_S:g} s"
        raise StartError(f"{job['id']} is {job['status']}: {reason}", _last_words(running))
    return job


def ask_many(running: Running, progress: Callable[[str], None]) -> tuple[Job, list[dict[str, str]]]:
    """Run a small batch over HTTP; the batch and its rows. Raises LocalError when not every row completes."""
    with _client(running) as client:
        return run_batch(client, progress)


@contextmanager
def _client(running: Running) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {running.key_file.read_text().strip()}"}
    try:
        with httpx.Client(
            base_url=running.api_url, headers=headers, timeout=LONG_POLL_S + 10, trust_env=False
        ) as client:
            yield client
    except httpx.HTTPError as error:
        raise StartError(f"the API did not answer: {error}", _last_words(running)) from error


def _body(prompt: str) -> dict[str, object]:
    return {"prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0}


def _json(response: httpx.Response) -> Job:
    if not response.is_success:
        raise LocalError(f"{response.request.url} answered {response.status_code}: {response.text[:500]}")
    job: Job = response.json()
    return job


def _last_words(running: Running) -> list[str]:
    """The end of every log that is not empty."""
    words = []
    for log in sorted((running.data_dir / "logs").glob("*.log")):
        words += [f"{log.name}: {line}" for line in tail(log, 6)]
    return words


def report(prompt: str, job: Job, ready_s: float) -> Group:
    """The question, the answer, its cost, and where the time went."""
    return Group(
        Panel(Text(prompt), title="question", title_align="left", border_style="cyan"),
        Panel(Text(job["result"]["text"].strip()), title="answer", title_align="left", border_style="green"),
        _facts(job),
        _times(job, ready_s),
    )


def _facts(job: Job) -> Table:
    table = _table("result")
    usage = job["usage"]
    table.add_row("job", job["id"])
    table.add_row("model", f"{job['result']['model']} (tier {job['tier']}, queue {job['queue']})")
    table.add_row("tokens", f"{usage['input_tokens']} in, {usage['output_tokens']} out")
    table.add_row("cost", f"${job['cost_usd']}")
    table.add_row("attempts", str(len(job["attempts"])))
    return table


def _times(job: Job, ready_s: float) -> Table:
    """Where the time went; the first job of a run also waits for the worker to boot and load its model."""
    table = _table("time", justify="right")
    for label, seconds in stages(job):
        table.add_row(label, f"{seconds:,.3f} s")
    table.add_row("(stack start-up, before the job)", f"{ready_s:,.3f} s")
    return table


def stages(job: Job) -> list[tuple[str, float]]:
    """The stages of a finished job in order, in seconds; the last line is their sum."""
    created, started, finished = (
        datetime.fromisoformat(job[key]) for key in ("created_at", "started_at", "finished_at")
    )
    attempt = job["attempts"][-1]
    call_s = attempt["duration_ms"] / 1000
    total_s = (finished - created).total_seconds()
    waited_s = (started - created).total_seconds()
    first_token_ms = attempt["time_to_first_token_ms"]
    first_s = first_token_ms / 1000 if first_token_ms is not None else 0.0
    return [
        ("submitted to claimed", waited_s),
        ("claimed to first token", first_s),
        ("generation", call_s - first_s),
        ("bookkeeping", max(0.0, total_s - waited_s - call_s)),
        ("submitted to finished", total_s),
    ]


def _table(title: str, justify: Any = "left") -> Table:  # Any: rich's justify is a Literal that it does not export
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 2))
    table.add_column(style="bold")
    table.add_column(justify=justify)
    return table
