"""Processes of Headrace that end at their start, and what they say."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from tests.stack import ROOT

PROCESSES = {
    "API": ["-m", "uvicorn", "api.app:create_app", "--factory", "--port", "0"],
    "relay": ["-m", "workers.relay"],
    "worker": ["-m", "celery", "-A", "workers.celery", "worker", "-P", "threads", "-Q", "small"],
}
"""Python's arguments."""


def end_of(arguments: Sequence[str], settings: Mapping[str, str]) -> tuple[int, str]:
    """The exit code of a process, and all that it wrote, which is never a traceback."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stdout
    return done.returncode, done.stdout
