"""Batches as people read them: a summary line, a table, an estimate."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from api.commands.errors import faults_of
from api.commands.shell import facts_table, print_fault_table
from api.commands.watching import ENDED, ENDS, done_of
from api.commands.wording import Json, count, duration, moment, pairs, plain, rows, usd

WIDE = 110
_ENDINGS = ("completed_at", "failed_at", "expired_at", "cancelled_at")


def succeeded(batch: Json) -> bool:
    """Whether every row of an ended batch completed."""
    counts = batch["counts"]
    return bool(batch["status"] == "completed" and counts["completed"] == counts["total"])


def summary(batch: Json) -> str:
    """How a batch ended, in a line."""
    counts = batch["counts"]
    parts = [f"{batch['id']}: {count(int(counts['completed']))} of {rows(int(counts['total']))} completed"]
    parts += [f"{count(int(counts[end]))} {end}" for end in ENDS[1:] if counts[end]]
    if batch["status"] != "completed":
        parts.append(f"the batch is {plain(batch['status'])}")
    parts.append(usd(batch["cost_usd"]))
    took = took_s(batch)
    return ", ".join([*parts, *([duration(took)] if took is not None else [])])


def took_s(batch: Json) -> float | None:
    """The seconds from a batch's creation to its end."""
    ends = [batch[name] for name in _ENDINGS if batch.get(name) is not None]
    return max(0.0, _seconds(max(ends, key=_seconds)) - _seconds(batch["created_at"])) if ends else None


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) else datetime.fromisoformat(str(value)).timestamp()


def print_errors(batch: Json, console: Console) -> None:
    """Why a batch's input file was refused, when it was."""
    errors = batch.get("errors")
    faults = faults_of(errors.get("data") if isinstance(errors, dict) else errors)
    if faults:
        print_fault_table(faults, console)


def batch_table(batches: Iterable[Json], width: int) -> Table:
    """Batches, one a line; what is created when, and at which cost, where there is room for it."""
    wide = width >= WIDE
    right = [Column(name, justify="right", no_wrap=True) for name in ("done", "failed", *(["cost"] if wide else []))]
    left = [Column(name, no_wrap=True) for name in ("id", "status")]
    created = [Column("created", no_wrap=True)] if wide else []
    name = Column("name", no_wrap=True, overflow="ellipsis")
    table = Table(*left, *right, *created, name, box=None, pad_edge=False)
    for batch in batches:
        done = f"{count(done_of(batch))}/{count(int(batch['counts']['total']))}"
        cells = [batch["id"], plain(batch["status"]), done, count(int(batch["counts"]["failed"]))]
        cells += [usd(batch["cost_usd"]), moment(batch["created_at"])] if wide else []
        table.add_row(*(Text(cell) for cell in (*cells, plain(batch["name"] or ""))))
    return table


def batch_facts(batch: Json) -> Table:
    """Everything that a person may want to know of one batch."""
    counts = ", ".join(f"{count(int(number))} {name}" for name, number in batch["counts"].items())
    facts = [("batch", batch["id"]), ("status", plain(batch["status"]))]
    facts += [(name, plain(batch[name])) for name in ("name", "model", "priority", "max_parallel") if batch.get(name)]
    if batch.get("pause_reason"):
        facts.append(("paused", plain(batch["pause_reason"])))
    facts += [("rows", counts), ("cost", usd(batch["cost_usd"])), ("reserved", usd(batch.get("reserved_usd")))]
    if batch["status"] not in ENDED and batch.get("rows_per_s"):
        facts.append(("rows per second", f"{batch['rows_per_s']:,.1f}"))
    times = ("created_at", "estimated_finish_at", "expires_at", *_ENDINGS)
    facts += [(name.removesuffix("_at").replace("_", " "), moment(batch[name])) for name in times if batch.get(name)]
    facts += pairs(batch.get("metadata") or {}, "metadata ")
    return facts_table(facts)


def estimate_facts(estimate: Json) -> Sequence[tuple[str, str]]:
    """What a dry run found, in words."""
    tokens, total, distinct = estimate["tokens"], int(estimate["rows"]), int(estimate["distinct_rows"])
    facts = [("rows", count(total) if total == distinct else f"{count(total)}, {count(distinct)} of them distinct")]
    facts.append(("columns", plain(", ".join(estimate["columns"]))))
    facts.append(("model", plain(", then ".join(estimate["route"]))))
    expected = (f"{count(int(tokens[way]['expected']))} {word}" for way, word in (("input", "in"), ("output", "out")))
    facts.append(("tokens", f"{', '.join(expected)}, about"))
    facts.append(("cost", f"about {usd(estimate['expected_cost_usd'])}, at worst {usd(estimate['worst_case_usd'])}"))
    seconds = estimate["seconds"]
    facts.append(("time", "unknown" if seconds is None else f"about {duration(float(seconds))}"))
    return facts + [("" if place else "assumed", plain(text)) for place, text in enumerate(estimate["assumptions"])]
