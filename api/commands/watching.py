"""Watching a batch: a live bar on a terminal, a line now and then elsewhere."""

import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn
from rich.text import Text

from api.commands.client import Api, patiently
from api.commands.wording import Json, count, duration, plain, usd
from api.local.by_hand import program

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
ENDS = ("completed", "failed", "cancelled", "expired")
PAUSES = {
    "requested": "paused; `{program} batch resume` lets it go on",
    "budget_exhausted": "paused: its budget is exhausted; it goes on when that is raised",
}
FIRST_POLL_S, SLOWEST_POLL_S = 0.2, 1.0
PLAIN_INTERVAL_S = 10.0
_RATE_WINDOW_S = 10.0


class Pace:
    """Rows per second over the last moments, as seen from here."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, done: int) -> None:
        """Note how many rows have ended by now."""
        now = self._clock()
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _RATE_WINDOW_S:
            self._seen.popleft()

    @property
    def rows_per_s(self) -> float | None:
        """None until two looks are far enough apart."""
        if not self._seen:
            return None
        (then, before), (now, done) = self._seen[0], self._seen[-1]
        return (done - before) / (now - then) if now - then >= 1 else None


def done_of(batch: Json) -> int:
    """How many rows have ended, whichever way."""
    counts = batch["counts"]
    return sum(int(counts[end]) for end in ENDS)


def facts_of(batch: Json, pace: float | None) -> list[str]:
    """What is worth knowing of a running batch, apart from how many rows are done."""
    total, done = int(batch["counts"]["total"]), done_of(batch)
    rate = batch.get("rows_per_s") or pace
    facts = [f"{rate:,.1f} rows/s" if rate else "- rows/s", f"{count(int(batch['counts']['failed']))} failed"]
    facts += [f"{count(int(batch['counts'][end]))} {end}" for end in ENDS[2:] if batch["counts"][end]]
    facts.append(f"{usd(batch['cost_usd'])} so far")
    if rate and batch["status"] == "in_progress":
        facts.append(f"{duration((total - done) / rate)} left")
    if batch["status"] == "paused":
        facts.append(PAUSES.get(str(batch.get("pause_reason")), "paused").format(program=program()))
    elif batch["status"] != "in_progress":
        facts.append(plain(batch["status"]))
    return facts


class View(AbstractContextManager["View", None]):
    """Shows how a batch gets on: :meth:`show` each look, :meth:`trouble` when the API is away."""

    def __init__(self) -> None:
        self.pace = Pace()

    def show(self, batch: Json) -> None:
        """Show a batch as it is now."""

    def trouble(self, text: str) -> None:
        """Show that it cannot be seen just now."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the view."""


class LiveView(View):
    """Two lines that are drawn anew: a bar, and the facts."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._bar = Progress(BarColumn(bar_width=None), MofNCompleteColumn(), TaskProgressColumn(), expand=True)
        self._task = self._bar.add_task("rows", total=None)
        self._facts = Text()
        self._live = Live(Group(self._bar, self._facts), console=console, transient=True, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, batch: Json) -> None:
        """Move the bar."""
        done = done_of(batch)
        self.pace.add(done)
        self._bar.update(self._task, total=int(batch["counts"]["total"]) or None, completed=done)
        self._facts.plain = " · ".join(facts_of(batch, self.pace.rows_per_s))

    def trouble(self, text: str) -> None:
        """Say it in place of the facts."""
        self._facts.plain = f"{plain(text)}; trying again"


class PlainView(View):
    """A line when something changes, and now and then."""

    def __init__(self, console: Console, interval_s: float = PLAIN_INTERVAL_S) -> None:
        super().__init__()
        self._console = console
        self._interval_s = interval_s
        self._shown_at = 0.0
        self._state: object = None

    def show(self, batch: Json) -> None:
        """Print a line, unless one has just been printed and nothing happened but progress."""
        self.pace.add(done_of(batch))
        state = (batch["status"], batch.get("pause_reason"))
        if state == self._state and time.monotonic() - self._shown_at < self._interval_s:
            return
        total = int(batch["counts"]["total"])
        facts = [f"{count(done_of(batch))}/{count(total)} rows", *facts_of(batch, self.pace.rows_per_s)]
        self._print(", ".join(facts), state)

    def trouble(self, text: str) -> None:
        """Print it once."""
        if self._state != "trouble":
            self._print(f"{plain(text)}; trying again", "trouble")

    def _print(self, line: str, state: object) -> None:
        self._state, self._shown_at = state, time.monotonic()
        self._console.print(line, soft_wrap=True, markup=False)


def view_for(console: Console) -> View:
    """The view that fits where it is shown."""
    return LiveView(console) if console.is_terminal else PlainView(console)


def watch(api: Api, batch: Json, view: View) -> Json:
    """Look at a batch until it has ended; returns it as it then is. An absent API is waited for.

    Raises Refused, and NoAnswer when the API stays away.
    """
    path, pause_s = f"/v1/batches/{batch['id']}", FIRST_POLL_S
    with view:
        while batch["status"] not in ENDED:
            view.show(batch)
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.3, SLOWEST_POLL_S)
            batch = patiently(lambda: api.get(path), view.trouble)
    return batch
