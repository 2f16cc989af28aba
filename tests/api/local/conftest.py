"""What the tests of the local stack share."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """An empty data directory that the servers' account can reach, unlike pytest's closed ones."""
    path = Path(tempfile.mkdtemp(prefix="headrace-test-")).resolve()
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)
