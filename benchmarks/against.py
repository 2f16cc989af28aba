"""This checkout against another revision: submit, throughput, rows of a batch, idle latency, processor time per job.

    python -m benchmarks.against REVISION [--rounds 8] [--only submit,rows] [--quick]

Both sides run as ``headrace up`` starts them, each with its own code, servers, database and settings of servers, on
this checkout's packages; one client, this checkout's, drives them over HTTP with one catalogue. Measures:

- ``idle``: one job at a time, from sending the POST to the claim; the median of a round.
- ``submit``: submissions over 32 connections while relay and worker are stopped (SIGSTOP), so that the API is alone.
- ``drain``: the jobs that ``submit`` left, from the moment when relay and worker go on to the last completed job.
- ``throughput``: no-op jobs over 32 connections while they run, from the first POST to the last completed job.
- ``rows``: a CSV file, from sending it to the batch's end.
- ``remote``: the same with an LLM behind a server that answers at once in a stream of 16 pieces.

Both stacks are up all the time and one is driven at a time: to start a stack in each round costs five seconds, and a
fresh process is slower than a warm one by more than what is looked for. The idle one costs 1 to 3 % of a core, each
side the same. Rounds go old, new, new, old, and so on, and a ratio compares the two readings of one round, so that the
drift of the machine's speed cancels out. Bounds: each median within 3 %, and a stricter line of 2 %. Run it on a quiet
machine.
"""

import csv
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median, quantiles

import httpx
import psycopg

from api.local.ports import choose_port
from benchmarks.ground import print_fsync, print_machine
from benchmarks.load import run_load
from benchmarks.processor import SUPERVISOR, parts_of, seconds_by_part
from benchmarks.remote import mock_provider
from benchmarks.submit import bodies
from tests.revisions import (
    RevisionError,
    commit_of,
    console_script,
    different_locks,
    environment,
    exported,
    require_own_code,
)
from tests.stack import ROOT, Stack, wait_until

CONCURRENCY = 64
BOUNDS = (3.0, 2.0)
PARTS = ("API", "relay", "worker", "Postgres", "Valkey", SUPERVISOR)
TEXT = "the wheel turns, the mill grinds, and nothing of the grain is lost, said reviewer"
_STOPPED = ("relay", "worker")
_SETTLE_S = 2.0
_BETWEEN_JOBS_S = 0.05
_UNFINISHED = "SELECT EXISTS (SELECT FROM jobs WHERE status IN ('queued', 'in_progress'))"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What one reading of each measure sends."""

    idle: int = 40
    submit: int = 6000
    throughput: int = 5000
    rows: int = 12_000
    remote: int = 3000


QUICK = Sizes(idle=10, submit=1000, throughput=1000, rows=2000, remote=500)
WARM_UP = Sizes(idle=5, submit=1000, throughput=1500, rows=2000, remote=500)


@dataclass(frozen=True, slots=True)
class Reading:
    """One side's value of one measure in one round, and the processor milliseconds per job of each part."""

    value: float
    cpu_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Kind:
    """How a measure is printed."""

    unit: str
    higher_is_better: bool = True


KINDS = {
    "idle": Kind("ms", higher_is_better=False),
    "submit": Kind("requests/s"),
    "drain": Kind("jobs/s"),
    "throughput": Kind("jobs/s"),
    "rows": Kind("rows/s"),
    "remote": Kind("rows/s"),
}


@dataclass
class Side:
    """A stack of one revision that is up."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    api_key: str
    database: psycopg.Connection[tuple[bool]]
    readings: dict[str, list[Reading]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> httpx.Client:
        """A client with this side's key."""
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.api_key}"}, timeout=120)

    def is_idle(self) -> bool:
        """Whether no job is waiting or running."""
        row = self.database.execute(_UNFINISHED).fetchone()
        assert self.process.poll() is None, f"the stack of {self.name} ended"
        return row is not None and not row[0]

    def cpu(self) -> Mapping[str, float]:
        """Processor seconds of each part so far."""
        return seconds_by_part(self.process.pid)

    def send(self, number: signal.Signals, parts: Sequence[str]) -> None:
        """Send a signal to every process of some parts."""
        for pid, part in parts_of(self.process.pid).items():
            if part in parts:
                os.kill(pid, number)

    def post(self, jobs: int) -> float:
        """Submit so many jobs over 32 connections; the seconds that it took."""
        result = run_load("127.0.0.1", self.port, "/v1/jobs", bodies(jobs), api_key=self.api_key)
        assert result.statuses == {202: jobs}, result.statuses
        return result.elapsed_s


@contextmanager
def _timed(side: Side, jobs: int, found: list[Reading], value: Callable[[float], float]) -> Iterator[None]:
    """Add a reading of the block: its value from the seconds that it took, its processor time per job."""
    before, started = side.cpu(), time.perf_counter()
    yield
    elapsed, after = time.perf_counter() - started, side.cpu()
    cpu_ms = {part: (after.get(part, 0.0) - before.get(part, 0.0)) / jobs * 1000 for part in PARTS}
    found.append(Reading(value(elapsed), cpu_ms))


def read_idle(side: Side, sizes: Sizes) -> dict[str, Reading]:
    """The median time from sending a POST to the claim of its job, in ms."""
    time.sleep(_SETTLE_S)
    times_ms: list[float] = []
    found: list[Reading] = []
    with side.client() as client, _timed(side, sizes.idle, found, lambda _: median(times_ms)):
        for number in range(sizes.idle):
            sent = time.time()
            job = client.post("/v1/jobs", json={"prompt": f"job {number}", "max_tokens": 1, "model": "echo"}).json()
            done = client.get(f"{job['status_url']}?wait=30").json()
            times_ms.append((datetime.fromisoformat(done["started_at"]).timestamp() - sent) * 1000)
            time.sleep(_BETWEEN_JOBS_S)
    return {"idle": found[0]}


def read_submit(side: Side, sizes: Sizes) -> dict[str, Reading]:
    """Submissions per second to an API alone, then the jobs per second that relay and worker complete alone."""
    found: list[Reading] = []
    side.send(signal.SIGSTOP, _STOPPED)
    try:
        with _timed(side, sizes.submit, found, lambda elapsed: sizes.submit / elapsed):
            side.post(sizes.submit)
    finally:
        side.send(signal.SIGCONT, _STOPPED)
    with _timed(side, sizes.submit, found, lambda elapsed: sizes.submit / elapsed):
        wait_until(side.is_idle, 180, interval_s=0.02)
    return {"submit": found[0], "drain": found[1]}


def read_throughput(side: Side, sizes: Sizes) -> dict[str, Reading]:
    """No-op jobs per second, submitted and run at once."""
    found: list[Reading] = []
    with _timed(side, sizes.throughput, found, lambda elapsed: sizes.throughput / elapsed):
        side.post(sizes.throughput)
        wait_until(side.is_idle, 180, interval_s=0.02)
    return {"throughput": found[0]}


def read_rows(side: Side, sizes: Sizes) -> dict[str, Reading]:
    """Rows per second of an uploaded CSV file."""
    return {"rows": _read_batch(side, sizes.rows, "echo")}


def read_remote(side: Side, sizes: Sizes) -> dict[str, Reading]:
    """Rows per second of an uploaded CSV file whose LLM is called over HTTP."""
    return {"remote": _read_batch(side, sizes.remote, "remote")}


def _read_batch(side: Side, rows: int, model: str) -> Reading:
    content, form = _csv(rows), {"prompt": "Classify: {{text}}", "model": model, "max_tokens": "32"}
    found: list[Reading] = []
    with side.client() as client, _timed(side, rows, found, lambda elapsed: rows / elapsed):
        files = {"file": ("rows.csv", content, "text/csv")}
        made = client.post("/v1/batches/upload", data=form | {"id_column": "id"}, files=files)
        assert made.status_code == 202, made.text
        batch: dict[str, object] = made.json()
        while batch["status"] in ("validating", "in_progress", "finalizing"):
            time.sleep(0.02)
            batch = client.get(f"/v1/batches/{batch['id']}").json()
    assert batch["status"] == "completed", batch
    assert batch["request_counts"] == {"total": rows, "completed": rows, "failed": 0}, batch
    return found[0]


READERS = {
    "idle": read_idle,
    "submit": read_submit,
    "throughput": read_throughput,
    "rows": read_rows,
    "remote": read_remote,
}


def _csv(rows: int) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["id", "text"])
    writer.writerows((number, f"{TEXT} {number}") for number in range(rows))
    return text.getvalue().encode()


@contextmanager
def running(sides: Mapping[str, Path], directory: Path) -> Iterator[list[Side]]:
    """Start the stack of each side, from the code in its folder; stop both on the way out."""
    with ExitStack() as cleanup:
        stack = cleanup.enter_context(Stack("", "", directory))
        url = cleanup.enter_context(mock_provider(0))
        remote = {"provider": "openai", "model": "mock", "base_url": f"{url}/v1"}
        stack.catalog({"echo": {}, "remote": remote}, **{"pools.cpu": {"concurrency": CONCURRENCY}})
        catalog = stack.settings["HEADRACE_CATALOG"]
        started = [(name, *_start(name, root, directory, catalog, cleanup)) for name, root in sides.items()]
        yield [_ready(name, process, port, directory / name, cleanup) for name, process, port in started]


def _start(
    name: str, root: Path, directory: Path, catalog: str, cleanup: ExitStack
) -> tuple[subprocess.Popen[bytes], int]:
    port = choose_port("127.0.0.1", [])
    options = ["up", "--no-flower", "--port", str(port), "--data-dir", str(directory / name)]
    log = cleanup.enter_context((directory / f"{name}.log").open("wb"))
    process = subprocess.Popen(
        [*console_script(root), *options],
        cwd=root,
        env=environment(root, HEADRACE_CATALOG=catalog, HEADRACE_OPTIONAL_LLMS=""),
        stdout=log,
        stderr=log,
    )
    cleanup.callback(_stop, process)
    return process, port


def _ready(name: str, process: subprocess.Popen[bytes], port: int, data: Path, cleanup: ExitStack) -> Side:
    def answers() -> bool:
        assert process.poll() is None, f"{name} did not start:\n{data.with_suffix('.log').read_text()[-2000:]}"
        try:
            return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2).is_success
        except httpx.HTTPError:
            return False

    wait_until(answers, 120, interval_s=0.2)
    url = _variable(_pid_of(process.pid, "API"), "HEADRACE_DATABASE_URL")
    database = cleanup.enter_context(psycopg.connect(url.replace("+psycopg", ""), autocommit=True))
    print(f"{name}: ", end="")
    print_fsync(url)
    return Side(name, process, port, (data / "api_key").read_text().strip(), database)


def _pid_of(supervisor: int, part: str) -> int:
    return next(pid for pid, found in parts_of(supervisor).items() if found == part)


def _variable(pid: int, name: str) -> str:
    """A variable of a process's environment: where a stack's servers are is told nowhere else."""
    for entry in Path(f"/proc/{pid}/environ").read_text().split("\0"):
        if entry.startswith(f"{name}="):
            return entry.partition("=")[2]
    raise RevisionError(f"process {pid} has no {name}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()  # the stack's guardian stops the rest


def measure(sides: Sequence[Side], names: Sequence[str], sizes: Sizes, rounds: int) -> None:
    """Warm both up, then read every measure of both sides in each round, by turns."""
    for side in sides:
        for name in names:
            READERS[name](side, WARM_UP)
    started = time.monotonic()
    for number in range(rounds):
        for name in names:
            for side in sides if number % 2 == 0 else reversed(sides):
                for found, reading in READERS[name](side, sizes).items():
                    side.readings.setdefault(found, []).append(reading)
        print(f"round {number + 1} of {rounds}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure of both sides: medians, and the ratios new / old of the rounds."""

    name: str
    old: float
    new: float
    ratios: Sequence[float]

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios."""
        return median(self.ratios)

    @property
    def worse_percent(self) -> float:
        """By how much the new side is worse; negative where it is better."""
        return ((1 - self.ratio) if KINDS[self.name].higher_is_better else (self.ratio - 1)) * 100

    @property
    def middle(self) -> tuple[float, float]:
        """Half of the ratios lie between these."""
        if len(self.ratios) < 2:
            return self.ratio, self.ratio
        low, _, high = quantiles(self.ratios, n=4, method="inclusive")
        return low, high


def compare(name: str, old: Sequence[float], new: Sequence[float]) -> Comparison:
    """Compare the readings of a measure, round by round."""
    return Comparison(name, median(old), median(new), [after / before for before, after in zip(old, new, strict=True)])


def print_comparisons(comparisons: Sequence[Comparison]) -> None:
    """One line a measure."""
    bounds = "".join(f" {f'within {bound:g} %':>11}" for bound in BOUNDS)
    heads = f"{'':12}{'old':>10}{'new':>10} {'':11}{'new/old':>7}  {'half within':13}  {'all within':13}"
    print(f"\n{heads} {'new is':>14}{bounds}")
    for found in comparisons:
        kind, worse = KINDS[found.name], found.worse_percent
        (low, high), least, most = found.middle, min(found.ratios), max(found.ratios)
        verdicts = "".join(f" {'yes' if worse <= bound else 'NO':>11}" for bound in BOUNDS)
        print(
            f"{found.name:12}{found.old:10.1f}{found.new:10.1f} {kind.unit:11}{found.ratio:7.3f}"
            f"  {f'{low:.3f}-{high:.3f}':13}  {f'{least:.3f}-{most:.3f}':13}"
            f" {f'{abs(worse):.1f} % ' + ('worse' if worse > 0 else 'better'):>14}{verdicts}"
        )


def print_processor_time(old: Side, new: Side) -> None:
    """One line a measure: the processor time per job of each part, of both sides."""
    print("\nprocessor time per job, ms, medians, old/new:")
    print(f"{'':12}" + "".join(f"{part:>14}" for part in PARTS) + f"{'sum':>14}{'ratio':>7}")
    for name in old.readings:
        pairs = [_cpu_medians(name, old, new, part) for part in PARTS]
        total = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
        cells = "".join(f"{f'{before:.3f}/{after:.3f}':>14}" for before, after in [*pairs, total])
        print(f"{name:12}{cells}{total[1] / total[0]:7.3f}")


def _cpu_medians(name: str, old: Side, new: Side, part: str) -> tuple[float, float]:
    before, after = (median(reading.cpu_ms[part] for reading in side.readings[name]) for side in (old, new))
    return before, after


def run(revision: str, names: Sequence[str], sizes: Sizes, rounds: int) -> None:
    """Compare, and print."""
    with exported(revision) as root, tempfile.TemporaryDirectory(prefix="headrace-against-") as temporary:
        directory = Path(temporary)
        directory.chmod(0o711)  # for the servers' own account
        require_own_code(root)
        require_own_code(ROOT)
        print_machine()
        print(f"old: {commit_of(revision)}; new: this checkout, {commit_of('HEAD')} and what is not committed")
        print(f"load before the start: {os.getloadavg()[0]:.2f}, {rounds} rounds")
        for lock in different_locks(root):
            print(f"{lock} differs: both sides run with this checkout's packages")
        with running({"old": root, "new": ROOT}, directory) as sides:
            measure(sides, names, sizes, rounds)
    old, new = sides
    readings = {name: [[reading.value for reading in side.readings[name]] for side in sides] for name in old.readings}
    print_comparisons([compare(name, *values) for name, values in readings.items()])
    print_processor_time(old, new)


def main() -> None:
    """Measure and print."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("revision")
    parser.add_argument("--rounds", type=int, help="8, or 2 with --quick")
    parser.add_argument("--only", default="", help=f"some of {','.join(READERS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it works, not to compare")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(READERS)
    if unknown := set(names) - READERS.keys():
        parser.error(f"--only: {', '.join(sorted(unknown))} is not one of {', '.join(READERS)}")
    try:
        rounds = options.rounds or (2 if options.quick else 8)
        run(options.revision, names, QUICK if options.quick else Sizes(), rounds)
    except RevisionError as error:
        sys.exit(f"against: {error}")


if __name__ == "__main__":
    main()
