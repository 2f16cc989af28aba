"""A process whose event loop stands still ends itself, and its supervisor starts it again."""

import os
import subprocess
import sys

from api.local.supervisor import ProcessSpec, Supervisor
from tests.stack import ROOT, Database, Stack, wait_until

WORKER = (
    *("-m", "celery", "-A", "workers.celery", "worker", "-P", "threads", "-n", "stalling@test", "-Q", "mock"),
    *("-c", "4", "--without-gossip", "--without-mingle", "--loglevel", "warning"),
)


def test_a_worker_whose_interpreter_stands_still_is_ended_and_started_again(stack: Stack, database: Database) -> None:
    stack.settings |= {"HEADRACE_LEASE_S": "1", "HEADRACE_MAX_DELIVERIES": "1"}
    stack.catalog({"stalling": {"pool": "remote", "mock": {"fault": "stall"}}, "echo": {"pool": "remote"}})
    stack.relay()
    environment = os.environ | stack.settings
    spec = ProcessSpec(name="worker", argv=[sys.executable, *WORKER], env=environment, cwd=ROOT)
    with Supervisor(stack.directory / "logs") as supervisor:
        supervisor.start(spec)
        database.submit(["hang"], route=["stalling"])
        supervisor.run_during(lambda: wait_until(lambda: database.count("failed") == 1))
        mute = supervisor.pid_of("worker")
        assert mute is not None
        database.submit(["honest"])
        supervisor.run_during(lambda: wait_until(lambda: database.count("completed") == 1))
        assert supervisor.pid_of("worker") not in (mute, None)
    log = (stack.directory / "logs" / "worker.log").read_text()
    assert "Timeout" in log
    assert "providers/mock.py" in log


def test_the_health_check_asks_for_the_sign_of_life(stack: Stack, database: Database) -> None:
    """Not for Postgres, from which a healthy worker may be cut off."""
    alive = stack.directory / "alive"
    check = [sys.executable, str(ROOT / "deploy" / "alive.py")]
    environment = {"HEADRACE_ALIVE_FILE": str(alive)}
    assert subprocess.run(check, env=environment, check=False, capture_output=True).returncode == 1
    stack.settings |= environment
    stack.relay()
    wait_until(lambda: database.value("SELECT count(*) FROM processes") == 1)
    assert subprocess.run(check, env=environment, check=False).returncode == 0
    old = alive.stat().st_mtime - 60
    os.utime(alive, (old, old))
    assert subprocess.run(check, env=environment, check=False).returncode == 1
