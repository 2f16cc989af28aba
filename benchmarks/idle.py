"""What Headrace costs when there is nothing to do, and how soon it starts when there is.

    python -m benchmarks.idle [--seconds 60] [--jobs 200]

Starts ``headrace up`` (Postgres, Valkey, API, relay, worker, Flower), lets it settle, and reads the CPU time of every
process of it. Then submits one job at a time and takes the time from sending the POST to the claim, on one clock.
Bounds: under 5 % of one core; p50 under 25 ms and p99 under 100 ms.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from datetime import datetime
from pathlib import Path
from statistics import quantiles

import httpx

from api.local.ports import choose_port
from benchmarks.ground import print_machine
from benchmarks.processor import seconds_by_part
from tests.stack import ROOT, Stack, wait_until


def measure_cpu(pid: int, seconds: float) -> None:
    """Print the CPU share of every part, and of the whole."""
    before = seconds_by_part(pid)
    time.sleep(seconds)
    after = seconds_by_part(pid)
    shares = {part: (after[part] - before[part]) / seconds * 100 for part in after}
    for name, share in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"{share:6.2f} %  {name}")
    print(f"{sum(shares.values()):6.2f} %  of one core, the whole stack over {seconds:g} s (bound 5)")


def measure_latency(url: str, api_key: str, jobs: int) -> None:
    """Print percentiles of the time from sending a POST to the claim of its job."""
    times_ms = []
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {api_key}"}) as client:
        for number in range(jobs):
            sent = time.time()
            job = client.post("/v1/jobs", json={"prompt": f"job {number}", "max_tokens": 1, "model": "echo"}).json()
            done = client.get(f"{job['status_url']}?wait=10").json()
            claimed = datetime.fromisoformat(done["started_at"]).timestamp()
            times_ms.append((claimed - sent) * 1000)
            time.sleep(0.05)
    marks = quantiles(times_ms, n=100, method="inclusive")
    print(f"submit to claim, idle, {jobs} jobs: p50 {marks[49]:.1f} ms (bound 25), p99 {marks[98]:.1f} ms (bound 100)")


def main() -> None:
    """Measure and print."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--jobs", type=int, default=200)
    options = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory(prefix="headrace-idle-") as directory:
        with Stack("", "", Path(directory)) as stack:
            stack.catalog({"echo": {}})
            environment = {"HEADRACE_CATALOG": stack.settings["HEADRACE_CATALOG"]}
        port = choose_port("127.0.0.1", [])
        url, log = f"http://127.0.0.1:{port}", Path(directory) / "up.log"
        with log.open("wb") as output:
            up = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "api.cli",
                    "up",
                    "--port",
                    str(port),
                    "--data-dir",
                    f"{directory}/data",
                ],
                env=os.environ | environment,
                cwd=ROOT,
                stdout=output,
                stderr=output,
            )
        try:
            wait_until(lambda: re.search("curl", log.read_text(errors="replace")) or up.poll() is not None, 120)
            time.sleep(15)
            measure_cpu(up.pid, options.seconds)
            measure_latency(url, (Path(directory) / "data" / "api_key").read_text().strip(), options.jobs)
        finally:
            up.terminate()
            up.wait(60)


if __name__ == "__main__":
    main()
