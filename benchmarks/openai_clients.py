"""OpenAI's own client, unmodified, on its newest version and on 1.x: the script of the tests, side by side.

    python -m benchmarks.openai_clients [--old 1.109.*]

The newest is what the tests are pinned to; the old one is installed into a temporary virtual environment. Bound: both
pass every step.
"""

import subprocess
import sys
import venv
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.ground import common_ground, print_machine
from tests import openai_client
from tests.test_openai_client import LLMS

SCRIPT = Path(openai_client.__file__)


def main() -> None:
    """Run and print; the exit status says whether both passed."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--old", default="1.109.*", help="the other version of `openai`")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="headrace-openai-") as directory, common_ground() as ground:
        print_machine()
        ground.stack.catalog(LLMS)
        ground.stack.relay()
        ground.stack.worker(concurrency=32)
        _, url = ground.stack.api()
        pythons = {"newest": sys.executable, options.old: _install(Path(directory), f"openai=={options.old}")}
        passed = [_run(name, python, url, ground.database.api_key) for name, python in pythons.items()]
    sys.exit(0 if all(passed) else 1)


def _run(name: str, python: str, url: str, api_key: str) -> bool:
    command = [python, str(SCRIPT), f"{url}/v1", api_key]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    steps = [line.removeprefix("ok ") for line in result.stdout.splitlines()]
    print(f"{name:>8}: {'PASS' if result.returncode == 0 else 'FAIL'}  {', '.join(steps)}")
    if result.returncode:
        print(result.stderr)
    return result.returncode == 0


def _install(directory: Path, requirement: str) -> str:
    venv.create(directory, with_pip=True)
    python = str(directory / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", requirement], check=True, stderr=subprocess.DEVNULL)
    return python


if __name__ == "__main__":
    main()
