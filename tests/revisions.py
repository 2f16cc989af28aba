"""Another revision of this repository, run beside this checkout under the same Python.

A revision is exported with ``git archive``: nothing is registered in the repository, so nothing is left there when the
run is killed. Its code is run as ``python -m`` or ``python -c`` with the exported folder as working directory and as
``PYTHONPATH``, which both come before the editable install of this checkout.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest

from tests.stack import ROOT

PREVIOUS = "f92fb828f18038914a89f98ce36dede1e765415b"
"""The last commit of the release before this one: what runs when an upgrade to this checkout starts."""

_LOCKS = ("requirements/dev.lock", "requirements/llama.lock")
_PACKAGES = ("api", "models", "workers")


class RevisionError(Exception):
    """A revision cannot be run; the message says why."""


def commit_of(revision: str) -> str:
    """The short name of the commit that ``revision`` names.

    Raises RevisionError when the repository does not have it, as a shallow clone may not.
    """
    done = _git("rev-parse", "--short=10", "--verify", "--quiet", f"{revision}^{{commit}}")
    if done.returncode:
        shallow = _git("rev-parse", "--is-shallow-repository").stdout.strip() == b"true"
        hint = "; this clone is shallow: git fetch --unshallow brings the others" if shallow else ""
        raise RevisionError(f"there is no revision {revision} in {ROOT}{hint}")
    return done.stdout.decode().strip()


def skip_without(revision: str) -> None:
    """Skip the test, and say why, where the clone does not have a revision."""
    try:
        commit_of(revision)
    except RevisionError as error:
        pytest.skip(str(error))


@contextmanager
def exported(revision: str) -> Iterator[Path]:
    """The files of a revision, in a temporary folder until the block ends.

    Raises RevisionError when the repository does not have the revision.
    """
    archive = _git("archive", "--format=tar", commit_of(revision))
    with tempfile.TemporaryDirectory(prefix="headrace-revision-") as directory:
        root = Path(directory)
        root.chmod(0o755)  # the embedded servers' own account enters it
        with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
            files.extractall(root, filter="data")
        yield root


def environment(root: Path, **settings: str) -> dict[str, str]:
    """The environment in which Python runs the code below ``root``; without the caller's own settings of Headrace."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return inherited | {"PYTHONPATH": str(root)} | settings


def require_own_code(root: Path) -> None:
    """Raise RevisionError unless Python, run as :func:`environment` says, imports the packages below ``root``."""
    code = f"import {', '.join(_PACKAGES)}; print({' , '.join(f'{name}.__path__[0]' for name in _PACKAGES)}, sep='|')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment(root), capture_output=True, text=True, check=False
    )
    found = [Path(path).parent.resolve() for path in done.stdout.strip().split("|")]
    if done.returncode or set(found) != {root.resolve()}:
        raise RevisionError(f"Python imports {found} instead of {root}: {done.stderr.strip()[-500:]}")


def different_locks(root: Path) -> list[str]:
    """The lock files that differ from this checkout's: both sides run with this checkout's packages."""
    return [name for name in _LOCKS if _text(root / name) != _text(ROOT / name)]


def console_script(root: Path) -> list[str]:
    """The command that runs the code's own ``headrace``, whatever its module is called."""
    project: Mapping[str, Mapping[str, str]] = tomllib.loads(_text(root / "pyproject.toml"))["project"]
    module, _, function = project["scripts"]["headrace"].partition(":")
    return [sys.executable, "-c", f"import sys; from {module} import {function}; sys.exit({function}())"]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise RevisionError("git is needed to read another revision, and was not found") from error
