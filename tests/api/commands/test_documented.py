"""What the documents tell people to type is typed here."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api.commands.conftest import Person
from tests.stack import ROOT

COMMAND = shlex.join([sys.executable, "-m", "api.cli"])


def commands_of(document: Path) -> str:
    """The lines that a document's first example of a batch has for the shell."""
    found = re.search(
        r"^    printf .*\n    \S*headrace batch run .*\n", document.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert found, document
    return re.sub(r"^    (\.venv/bin/)?headrace ", f"{COMMAND} ", found[0], flags=re.MULTILINE)


@pytest.mark.parametrize(("name", "answers"), [("README.md", "answers.csv"), ("docs/batches.md", "out.csv")])
def test_the_first_example_of_a_batch_runs_as_it_is_written(person: Person, name: str, answers: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-ec", commands_of(ROOT / name)],
        env=person.environment,
        cwd=person.directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert all(row["output"] and not row["error"] for row in person.sheet(answers))


def test_every_command_of_the_document_has_its_help(person: Person) -> None:
    text = (ROOT / "docs" / "batches.md").read_text(encoding="utf-8")
    commands = set(re.findall(r"`headrace (batch \w+|\w+)", text))
    assert {"batch run", "batch watch", "batch retry", "batch results"} <= commands
    shown = person.run("batch", "--help").stdout + person.run("--help").stdout
    assert [name for name in commands if not re.search(rf"\b{name.split()[-1]}\b", shown)] == []


def test_every_flag_of_the_document_is_one(person: Person) -> None:
    text = (ROOT / "docs" / "batches.md").read_text(encoding="utf-8")
    shown = "".join(person.run("batch", name, "--help").stdout for name in ("run", "results", "retry"))
    assert sorted(flag for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) if flag not in shown) == []
