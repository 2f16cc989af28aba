"""`headrace up`, `demo` and `health` as a person runs them: real processes, from the shell to Ctrl-C."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from api.local.errors import LocalError
from api.local.ports import choose_port
from api.local.processes import PROC, is_alive
from api.local.stack import StackOptions, local_url, running_stack
from workers.engine.gpu import available_gpus

CATALOG = """
default = "mock"
[pools.cpu]
concurrency = 2
[tiers.mock]
queue = "mock"
pool = "cpu"
[llms.echo]
tier = "mock"
provider = "mock"
context_window = 4096
input_price = "1"
output_price = "2"
[llms.slow]
tier = "mock"
provider = "mock"
context_window = 4096
input_price = "1"
output_price = "2"
mock = { latency_s = 2.0 }
"""
START_TIMEOUT_S = 90.0


@pytest.fixture
def env(tmp_path: Path) -> Mapping[str, str]:
    """The caller's environment without servers, and with LLMs that answer at once."""
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(CATALOG)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
    return kept | {"HEADRACE_CATALOG": str(catalog), "HEADRACE_LEASE_S": "3"}


@pytest.fixture
def port() -> int:
    return choose_port("127.0.0.1", [])


def headrace(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "api.cli", *arguments]


def processes_of(data_dir: Path) -> list[int]:
    """Every process that was started for a data directory, by its environment or its arguments."""
    found = []
    for entry in PROC.glob("[0-9]*"):
        try:
            seen = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(data_dir).encode() in seen and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return [pid for pid in found if is_alive(pid)]


@contextmanager
def up(data_dir: Path, port: int, env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """`headrace up` in a session of its own, as a terminal would run it; ready when this returns."""
    output = data_dir / "output"
    with output.open("wb") as file:
        argv = headrace("up", "--data-dir", str(data_dir), "--port", str(port), "--no-flower")
        process = subprocess.Popen(argv, env=env, stdout=file, stderr=file, start_new_session=True)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while b"Headrace is ready" not in output.read_bytes():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def client(data_dir: Path, port: int) -> httpx.Client:
    key = (data_dir / "api_key").read_text().strip()
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}, timeout=60)


def finished(api: httpx.Client, job: Mapping[str, str]) -> dict[str, object]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        answer: dict[str, object] = api.get(job["status_url"], params={"wait": 20}).json()
        if answer["status"] not in ("queued", "in_progress"):
            return answer
    raise AssertionError(f"{job['id']} did not finish")


def test_up_survives_its_parts_and_goes_on_where_it_was(data_dir: Path, port: int, env: Mapping[str, str]) -> None:
    with up(data_dir, port, env) as process:
        assert (data_dir / "api_key").stat().st_mode & 0o777 == 0o600
        with client(data_dir, port) as api:
            first = api.post("/v1/jobs", json={"prompt": "hello", "model": "echo"}).json()
            assert finished(api, first)["status"] == "completed"

            for pid in processes_of(data_dir):
                line = (PROC / str(pid) / "cmdline").read_bytes()
                if b"valkey-server" in line or b"celery" in line:
                    os.kill(pid, signal.SIGKILL)
            second = api.post("/v1/jobs", json={"prompt": "still there?", "model": "echo"}).json()
            assert finished(api, second)["status"] == "completed"

            last = api.post("/v1/jobs", json={"prompt": "in flight", "model": "slow"}).json()
        key = (data_dir / "api_key").read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert processes_of(data_dir) == []

    with up(data_dir, port, env) as process, client(data_dir, port) as api:
        assert (data_dir / "api_key").read_text() == key
        assert api.get(first["status_url"]).json()["status"] == "completed"
        assert finished(api, last)["status"] == "completed"
        health = subprocess.run(
            headrace("health", "--url", f"http://127.0.0.1:{port}"),
            env=env,
            capture_output=True,
            check=False,
            text=True,
        )
        assert health.returncode == 0, health.stderr
        assert "postgres" in health.stdout
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert processes_of(data_dir) == []


def test_a_port_that_was_asked_for_and_is_taken_is_one_line(data_dir: Path, env: Mapping[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        argv = headrace("up", "--data-dir", str(data_dir), "--port", str(taken), "--no-flower")
        done = subprocess.run(argv, env=env, capture_output=True, check=False, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"headrace: port {taken} is in use by another program; choose another --port, or leave it out"
    ]
    assert processes_of(data_dir) == []


def test_a_second_stack_in_one_data_directory_is_refused(data_dir: Path, env: Mapping[str, str]) -> None:
    with (
        running_stack(StackOptions(data_dir=data_dir, flower=False), env),
        pytest.raises(LocalError, match="in use by another Headrace"),
        running_stack(StackOptions(data_dir=data_dir, flower=False), env),
    ):
        pytest.fail("two stacks ran in one data directory")


def test_a_process_that_cannot_start_ends_the_command_with_its_last_words(
    data_dir: Path, env: Mapping[str, str]
) -> None:
    broken = {**env, "HEADRACE_DATABASE_URL": "postgresql+psycopg://nobody:x@127.0.0.1:1/none"}
    done = subprocess.run(
        headrace("up", "--data-dir", str(data_dir)), env=broken, capture_output=True, check=False, text=True
    )
    assert done.returncode == 1
    assert "headrace: migrate failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert processes_of(data_dir) == []


def test_a_wrong_catalogue_is_one_line(data_dir: Path, env: Mapping[str, str]) -> None:
    Path(env["HEADRACE_CATALOG"]).write_text("nonsense = 1")
    argv = headrace("up", "--data-dir", str(data_dir))
    done = subprocess.run(argv, env=env, capture_output=True, check=False, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"headrace: .*catalog\.toml: .*nonsense.*\n", done.stderr, re.DOTALL)


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="the extra `local` is not installed")
def test_the_demo_answers_a_real_prompt_with_a_real_model(data_dir: Path, env: Mapping[str, str]) -> None:
    real = {key: value for key, value in env.items() if key != "HEADRACE_CATALOG"} | {"COLUMNS": "100"}
    argv = headrace("demo", "--data-dir", str(data_dir))
    done = subprocess.run(argv, env=real, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    for expected in (
        "smollm2-135m",
        "answer",
        "cost",
        "submitted to claimed",
        "curl -s http://",
        "6 of 6 rows",
        "Norway",
    ):
        assert expected in done.stdout
    assert processes_of(data_dir) == []


def test_nothing_that_answers_is_one_line(port: int) -> None:
    argv = headrace("health", "--url", f"http://127.0.0.1:{port}")
    done = subprocess.run(argv, capture_output=True, check=False, text=True)
    assert done.returncode == 3
    assert done.stderr.startswith(f"headrace: nothing answers at http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("localhost", "http://localhost:80"),
    ],
)
def test_the_url_of_a_host_is_one_that_can_be_opened_here(host: str, url: str) -> None:
    assert local_url(host, 80) == url


GPU_TIER = """
[tiers.large]
queue = "large"
pool = "gpu"
[llms.fast]
tier = "large"
provider = "mock"
context_window = 4096
input_price = "1"
output_price = "2"
[llms.absent]
optional = true
tier = "mock"
provider = "llamacpp"
source = "/nowhere/model.gguf"
context_window = 4096
input_price = "0"
output_price = "0"
[llms.present]
optional = true
tier = "mock"
provider = "mock"
context_window = 4096
input_price = "0"
output_price = "0"
"""


@pytest.mark.skipif(bool(available_gpus()), reason="this machine has a GPU that llama.cpp can use")
def test_up_leaves_out_what_this_machine_cannot_run_and_says_so(
    data_dir: Path, port: int, env: Mapping[str, str]
) -> None:
    Path(env["HEADRACE_CATALOG"]).write_text(CATALOG + GPU_TIER)
    with up(data_dir, port, env) as process, client(data_dir, port) as api:
        output = (data_dir / "output").read_text()
        assert "the pool gpu is not started: " in output
        assert "jobs of its tiers (large) wait" in output
        assert "leaving out absent: optional" in output
        assert finished(api, api.post("/v1/jobs", json={"prompt": "hi", "model": "present"}).json())["status"] == (
            "completed"
        )
        assert api.post("/v1/jobs", json={"prompt": "hi", "model": "absent"}).json()["code"] == "model_not_found"
        waiting = api.post("/v1/jobs", json={"prompt": "hi", "model": "fast"}).json()
        assert api.get(waiting["status_url"]).json()["status"] == "queued"
        large = api.get("/health").json()["parts"]["queue:large"]
        assert large["status"] == "down"
        assert large["problem"] == "no worker of the pool gpu serves it; its jobs wait"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
