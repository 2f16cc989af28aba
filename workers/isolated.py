"""The spare process of :mod:`workers.isolation`: runs one job at a time, alone.

    python -m workers.isolated NAME

Standard input brings ids of jobs in hex, one a line; a line on standard output tells that the job has ended. When
standard input ends, the process gives back what it runs, and ends.
"""

import os
import signal
import sys
import threading
from queue import SimpleQueue
from uuid import UUID

from models.catalog import load_catalog
from models.settings import read_settings
from models.telemetry import configure_logging
from workers.runner import Runner
from workers.settings import WorkerSettings


def main() -> None:
    """Run jobs until standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the worker decides when this process ends, by closing its input
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed is no answer
    configure_logging()
    settings = read_settings(WorkerSettings)
    catalog = load_catalog(settings.catalog, settings.optional_llms)
    runner = Runner(settings, catalog, name=sys.argv[1], queues=(), capacity=1, isolated=True)
    runner.start()
    jobs: SimpleQueue[UUID | None] = SimpleQueue()
    threading.Thread(target=_read, args=(jobs, runner), daemon=True).start()
    while (job_id := jobs.get()) is not None:
        runner.run([job_id], rows=False)
        try:
            answers.write("ended\n")
        except BrokenPipeError:
            break
    runner.stop()


def _read(jobs: "SimpleQueue[UUID | None]", runner: Runner) -> None:
    for line in sys.stdin:
        jobs.put(UUID(line.strip()))
    runner.drain()
    jobs.put(None)


if __name__ == "__main__":
    main()
