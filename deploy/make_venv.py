"""Makes ``.venv``: every package at its locked version, Headrace itself and its console script.

    python3 deploy/make_venv.py [gemma]     # called by `make setup`, which knows when it is needed

An extra that was installed once stays, and is kept at its locked version; so do the flags of llama-cpp-python, which
the variable CMAKE_ARGS sets, such as ``-DGGML_CUDA=ON``.

A finished environment is brought up to date in place; what an interrupted set-up left is made anew.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from join_parts import EXTRAS
from llama_wheel import REPOSITORY, BuildError, ensure_wheel
from progress import CommandError, follow, say

VENV = REPOSITORY / ".venv"
STAMP = VENV / "stamp"
EXTRAS_HERE = VENV / "extras"
FLAGS_HERE = VENV / "cmake_args"
WHEEL_HERE = VENV / "llama_wheel"
PYTHON = VENV / "bin" / "python"
PIP = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "--no-compile", "--no-deps"]

_STEP = re.compile(r"^(Collecting|Installing) [^\s(]+")


def main(extras: Sequence[str]) -> None:
    """Make or update the environment; the caller writes the stamp when this has succeeded.

    Raises BuildError and CommandError, and BuildError for an extra that does not exist.
    """
    if unknown := set(extras) - EXTRAS.keys():
        raise BuildError(f"there is no extra {', '.join(sorted(unknown))}, only {', '.join(EXTRAS)}")
    wanted = sorted({*extras, *(marker.name for marker in EXTRAS_HERE.glob("*"))})
    kept = FLAGS_HERE.read_text() if FLAGS_HERE.exists() else ""
    flags = os.environ.setdefault("CMAKE_ARGS", kept)
    wheel = ensure_wheel()  # first: it takes longest, and lacks a compiler if anything is lacking
    if not (STAMP.exists() and _works("import pip")):
        shutil.rmtree(VENV, ignore_errors=True)
        VENV.mkdir()
        _run("making .venv", [sys.executable, "-m", "venv", str(VENV)])
    STAMP.unlink(missing_ok=True)
    locked = ["--require-hashes", "-r", str(REPOSITORY / "requirements" / "dev.lock")]
    _run("installing the locked packages", [*PIP, *locked])
    _install_llama(wheel)
    FLAGS_HERE.write_text(flags)
    for extra in wanted:
        _install_extra(extra)
    # The build backend is one of the locked packages: isolation would fetch one that is not.
    _run("installing headrace", [*PIP, "--no-build-isolation", "--editable", str(REPOSITORY)])
    # Workers start in two thirds of the time.
    _run("byte-compiling", [str(PYTHON), "-m", "compileall", "-q", "-j", "0", str(VENV / "lib")])
    say("set-up complete")


def _install_llama(wheel: Path) -> None:
    """Install the wheel, in place of one with other flags, of which its version says nothing: the name of its folder
    in the cache does. One from the cache may be of a machine with other system libraries."""
    installed = WHEEL_HERE.read_text() if WHEEL_HERE.exists() else ""
    force = ["--force-reinstall"] if installed != wheel.parent.name else []
    _run("installing llama-cpp-python", [*PIP, *force, str(wheel)])
    WHEEL_HERE.write_text(wheel.parent.name)
    if _works("import llama_cpp"):
        return
    say(f"{wheel} does not load on this machine")
    _run("installing llama-cpp-python", [*PIP, "--force-reinstall", str(ensure_wheel(rebuild=True))])
    if not _works("import llama_cpp"):
        raise BuildError("llama-cpp-python was compiled here and does not load")


def _install_extra(extra: str) -> None:
    """Install a model's packages, and make one file of its parts."""
    lock = REPOSITORY / "requirements" / f"{extra}.lock"
    _run(f"installing {extra}", [*PIP, "--require-hashes", "-r", str(lock)])
    _run(f"joining {extra}", [str(PYTHON), str(REPOSITORY / "deploy" / "join_parts.py"), extra])
    EXTRAS_HERE.mkdir(exist_ok=True)
    (EXTRAS_HERE / extra).touch()


def _works(code: str) -> bool:
    if not PYTHON.exists():
        return False
    return subprocess.run([PYTHON, "-c", code], capture_output=True, check=False).returncode == 0


def _run(what: str, command: Sequence[str]) -> None:
    follow(what, command, step=_STEP, log=VENV / "setup.log")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (BuildError, CommandError) as error:
        sys.exit(f"headrace: {error}")
