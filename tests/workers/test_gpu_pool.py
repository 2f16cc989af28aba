"""A GPU pool's worker starts where a GPU is, and nowhere else; what waits for one is told."""

import os
import subprocess
import sys
import time

import pytest

from tests.stack import Database, Stack, wait_until
from workers.engine.gpu import available_gpus

needs_a_machine_without_gpu = pytest.mark.skipif(
    bool(available_gpus()), reason="this machine has a GPU that llama.cpp can use; the refusal is tested where none is"
)


@needs_a_machine_without_gpu
def test_a_worker_for_gpu_queues_refuses_a_machine_without_gpu(stack: Stack) -> None:
    stack.catalog({"echo": {"pool": "gpu"}, "other": {"tier": "small"}})
    worker = stack.worker("mock")
    assert worker.wait(60) == os.EX_CONFIG
    log = next(stack.directory.glob("worker*.log")).read_text()
    assert "no worker for the GPU queues mock here: " in log
    assert "HEADRACE_GPU_REQUIRED=false" in log
    assert "Traceback" not in log


def test_a_worker_serves_gpu_queues_without_one_when_the_operator_insists(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {"pool": "gpu"}})
    stack.settings["HEADRACE_GPU_REQUIRED"] = "false"
    stack.relay()
    stack.worker("mock")
    database.submit(["hello"])
    database.wait_until_finished()
    database.assert_each_completed_once(1)


@needs_a_machine_without_gpu
def test_the_look_for_gpus_says_why_there_is_none(stack: Stack) -> None:
    look = subprocess.run([sys.executable, "-m", "workers.gpu_pool"], capture_output=True, text=True, check=False)
    assert look.returncode == os.EX_CONFIG
    assert "GPU" in look.stdout


def test_the_relay_says_once_of_a_queue_that_no_worker_serves_it(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {"pool": "gpu"}})
    stack.relay()
    database.submit(["waiting", "too"])
    log = stack.directory / "relay0.log"
    wait_until(lambda: "queue.unserved" in log.read_text())
    time.sleep(2.5 * float(stack.settings["HEADRACE_LEASE_S"]) / 2)  # it looks twice more
    (line,) = (line for line in log.read_text().splitlines() if "queue.unserved" in line)
    assert "queue=mock" in line
    assert "jobs=2" in line
    assert database.unfinished() == 2
