"""What a call costs on its way to the provider: Headrace beside LiteLLM's proxy, over the same mock provider.

    python -m benchmarks.litellm_proxy [--requests 2000] [--rounds 3] [--venv DIRECTORY]

LiteLLM is installed into a virtual environment of its own (some 750 MB, in the user's cache directory, kept for the
next time) and runs one worker without a database. Headrace runs one API process, the relay and one remote worker, and
gets ``POST /v1/jobs`` with ``Prefer: wait=30``: every request is a job in Postgres, with fsync, before it is
called, and its result and cost are there before it is answered. LiteLLM keeps nothing. The provider answers at once;
what it takes alone, asked by the same client, is subtracted from the overhead. Both are shown; there is no bound.
"""

import os
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from api.local.ports import choose_port
from benchmarks.ground import common_ground, print_fsync, print_machine, spread
from benchmarks.load import LoadResult, run_load
from benchmarks.remote import answers, mock_provider
from models.database import dump_json
from tests.stack import wait_until

LITELLM = "litellm[proxy]==1.106.2"
MASTER_KEY = "sk-benchmark"
CONNECTIONS = 32
_DONE = "installed"


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send chat requests, and how."""

    port: int
    path: str
    api_key: str
    body: bytes
    prefer: str = ""

    def load(self, requests: int, connections: int) -> LoadResult:
        """Send requests; every one must succeed."""
        bodies = [self.body] * requests
        result = run_load(
            *("127.0.0.1", self.port, self.path, bodies),
            connections=connections,
            api_key=self.api_key,
            prefer=self.prefer,
        )
        assert result.statuses == {200: requests}, (self.path, result.statuses)
        return result


def install(directory: Path) -> Path:
    """The proxy's program, in a virtual environment that is made if it is not there yet."""
    done = directory / _DONE
    if not done.is_file() or done.read_text(encoding="utf-8") != LITELLM:
        print(f"installing {LITELLM} into {directory}; this takes minutes, once", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(directory)], check=True)
        subprocess.run([str(directory / "bin" / "pip"), "install", "--quiet", LITELLM], check=True)
        done.write_text(LITELLM, encoding="utf-8")
    return directory / "bin" / "litellm"


@contextmanager
def proxy(program: Path, provider: str, directory: Path) -> Iterator[Target]:
    """Run LiteLLM's proxy with one worker."""
    port = choose_port("127.0.0.1", [])
    config = directory / "litellm.yaml"
    config.write_text(
        "model_list:\n  - model_name: mock\n    litellm_params:\n"
        f"      model: openai/mock\n      api_base: {provider}/v1\n      api_key: none\n",
        encoding="utf-8",
    )
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "LITELLM_MASTER_KEY": MASTER_KEY,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
    }
    with (directory / "litellm.log").open("wb") as log:
        process = subprocess.Popen(
            [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"],
            env=environment,
            cwd=directory,
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: process.poll() is not None or answers(f"http://127.0.0.1:{port}/health/liveliness"), 120)
        assert process.poll() is None, (directory / "litellm.log").read_text(errors="replace")[-2000:]
        yield Target(port, "/v1/chat/completions", MASTER_KEY, _chat())
    finally:
        process.terminate()
        process.wait()


def measure(targets: dict[str, Target], requests: int, rounds: int) -> None:
    """Load the targets turn by turn and print both measures."""
    alone: dict[str, list[float]] = {name: [] for name in targets}
    rates: dict[str, list[float]] = {name: [] for name in targets}
    for target in targets.values():
        target.load(200, CONNECTIONS)
    for _ in range(rounds):
        for name, target in targets.items():
            alone[name].append(target.load(requests // 10, 1).percentile_ms(50))
            rates[name].append(target.load(requests, CONNECTIONS).rate)
    for name in targets:
        overhead = median(alone[name]) - median(alone["provider"])
        print(
            f"{name:>9}: 1 connection p50 {median(alone[name]):.2f} ms, overhead {overhead:.2f} ms;"
            f" {CONNECTIONS} connections {spread(rates[name])} requests/s"
        )


def main() -> None:
    """Install, measure and print."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--venv", type=Path, default=cache / "headrace" / "litellm")
    options = parser.parse_args()
    program = install(options.venv)
    with common_ground() as ground, mock_provider(0.0) as provider:
        print_machine()
        print_fsync(ground.database.url)
        ground.stack.catalog({"remote": {"provider": "openai", "model": "mock", "base_url": f"{provider}/v1"}})
        ground.stack.relay()
        ground.stack.worker(concurrency=CONNECTIONS * 2)
        _, url = ground.stack.api()
        job = dump_json({"messages": _MESSAGES, "model": "remote", "max_tokens": 64}).encode()
        with proxy(program, provider, ground.stack.directory) as litellm:
            time.sleep(3)
            targets = {
                "provider": Target(int(provider.rsplit(":", 1)[1]), "/v1/chat/completions", "", _chat()),
                "litellm": litellm,
                "headrace": Target(int(url.rsplit(":", 1)[1]), "/v1/jobs", ground.database.api_key, job, "wait=30"),
            }
            measure(targets, options.requests, options.rounds)


_MESSAGES = [{"role": "user", "content": "Classify the sentiment of this review: the wheel turns, nothing is lost."}]


def _chat() -> bytes:
    return dump_json({"model": "mock", "messages": _MESSAGES, "max_tokens": 64}).encode()


if __name__ == "__main__":
    main()
