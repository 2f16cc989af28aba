"""Whatever a person gets wrong at the command line is one line and an exit code."""

import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest

import api.commands.job
import api.commands.running
from api import cli
from api.local.postgres import EmbeddedPostgres
from tests.api.commands.mistakes import DOCUMENT, FILES, KEY, RUN, SERVER, SHEET, URLS, USAGE, Mistake, document

Run = Callable[..., tuple[int, str]]
DATABASES = {"ascii": "SQL_ASCII", "latin1": "LATIN1", "empty": "UTF8"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process; its exit code and what it wrote to the standard error."""
    for name in [name for name in os.environ if name.startswith("HEADRACE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(api.commands.job, "SUBMIT_PATIENCE_S", 0)

    def run(argv: Sequence[str], stdin: bytes = b"") -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["headrace", *argv])
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin), isatty=lambda: False))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, capfd.readouterr().err

    return run


def make(mistake: Mistake, run: Run, monkeypatch: pytest.MonkeyPatch, **places: str) -> None:
    """Make a mistake, and see what is said."""
    places["dir"] = str(Path.cwd())
    for name, data in mistake.files.items():
        Path(name).write_bytes(data)
    for name, value in mistake.env.items():
        monkeypatch.setenv(name, value.format(**places))
    code, said = run(mistake.argv, mistake.stdin)
    expected = re.escape(f"headrace: {mistake.says.format(**places)}\n").replace(r"\.\.\.", ".*")
    assert re.fullmatch(expected, said), said
    assert code == mistake.code


def name_of(mistake: Mistake) -> str:
    return f"{' '.join(mistake.argv[:2])}: {mistake.what}"


@pytest.mark.parametrize("mistake", [*URLS, *FILES], ids=name_of)
def test_a_mistake_is_one_line_and_an_exit_code(mistake: Mistake, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    make(mistake, run, monkeypatch)


@pytest.fixture(scope="module")
def databases(postgres: EmbeddedPostgres) -> Iterator[dict[str, str]]:
    """Databases of each kind, and a role without rights."""
    admin = postgres.url.replace("+psycopg", "")
    with psycopg.connect(admin, autocommit=True) as connection:
        for name, encoding in DATABASES.items():
            connection.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
        connection.execute("CREATE ROLE guest LOGIN PASSWORD 'p@ss/w#rd?%'")
        yield {"server": admin.rpartition("/")[0], "address": admin.rpartition("@")[2].partition("/")[0]}
        for name in DATABASES:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        connection.execute("DROP ROLE guest")


@pytest.mark.parametrize("mistake", SERVER, ids=name_of)
def test_a_database_that_refuses_is_one_line(
    mistake: Mistake, run: Run, databases: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(mistake, run, monkeypatch, **databases)


@pytest.mark.parametrize("argv", [("submit", "x"), (*RUN, "--prompt", "{{text}}")], ids=["submit", "batch run"])
def test_a_server_that_is_down_is_told_at_once_and_once(
    argv: Sequence[str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.commands.job, "SUBMIT_PATIENCE_S", 0.6)
    monkeypatch.setattr(api.commands.running, "SUBMIT_PATIENCE_S", 0.6)
    for name, value in KEY.items():
        monkeypatch.setenv(name, value)
    Path("rows.csv").write_bytes(SHEET["rows.csv"])
    code, said = run((*argv, "--url", "http://127.0.0.1:9"))
    away = "no answer from http://127.0.0.1:9: Connection refused (`headrace up` starts Headrace here)"
    sending = ["sending rows.csv (9 bytes)"] if argv[0] == "batch" else []
    assert said.splitlines() == [*sending, f"{away}; trying again for 0.6 s", f"headrace: {away}"]
    assert code == 3


@pytest.mark.parametrize(("argv", "says"), USAGE, ids=[" ".join(argv) for argv, _ in USAGE])
def test_a_command_line_that_cannot_be_read_says_what_is_wrong(argv: Sequence[str], says: str, run: Run) -> None:
    code, said = run(argv)
    assert code == 2
    assert says in " ".join(said.replace("│", " ").split()), said


def test_the_document_is_that_of_the_table() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document()
