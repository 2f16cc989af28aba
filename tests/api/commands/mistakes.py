"""Mistakes at the command line, what the command says, and its exit code.

``python -m tests.api.commands.mistakes`` writes docs/command-line.md from this table, and ``test_mistakes.py`` makes
each mistake. Sources are public reports about similar programs. In ``says`` three dots stand for any text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.stack import ROOT

DOCUMENT = ROOT / "docs" / "command-line.md"
KEY = {"HEADRACE_API_KEY": "hr_aaaaaaaaaaaa_bbbb"}
SHEET = {"rows.csv": b"text\r\na\r\n"}
RUN = ("batch", "run", "rows.csv")


@dataclass(frozen=True)
class Mistake:
    """One mistake: the command with its environment, files and input, what it says, and its exit code."""

    what: str
    argv: Sequence[str]
    says: str
    code: int = 2
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    stdin: bytes = b""


def _database(what: str, url: str, says: str, code: int = 2, command: str = "migrate") -> Mistake:
    return Mistake(what, command.split(), says, code, {"HEADRACE_DATABASE_URL": url})


def _catalog(what: str, content: bytes, says: str) -> Mistake:
    return Mistake(what, ("up",), says, env={"HEADRACE_CATALOG": "{dir}/c.toml"}, files={"c.toml": content})


def _run(what: str, flags: str, says: str, **files: bytes) -> Mistake:
    return Mistake(what, (*RUN, *flags.split()), says, env=KEY, files={**SHEET, **files})


_READ = "HEADRACE_DATABASE_URL: "

URLS = (
    Mistake("no database is named", ("migrate",), "set HEADRACE_DATABASE_URL; `headrace up` has a database of its own"),
    _database("the variable is empty", "", "set HEADRACE_DATABASE_URL; `headrace up` has a database of its own"),
    _database(
        "it is not a URL", "nonsense", f"{_READ}it is not a URL; expected postgresql://user:password@host:port/name"
    ),
    _database(
        "it has quotation marks, as Docker's env files keep them",
        '"postgres://h/db"',
        f"{_READ}it begins with a quotation mark...",
    ),
    _database("it is another database's", "mysql://h/db", f"{_READ}mysql:// is not a URL of Postgres; expected ..."),
    _database(
        "it names another driver",
        "postgresql+asyncpg://h/db",
        f"{_READ}the driver asyncpg is not used here; write postgresql:// in place of postgresql+asyncpg://",
    ),
    _database(
        "it has a parameter of another driver",
        "postgres://h/db?ssl=true",
        f"{_READ}there is no parameter 'ssl' here; write sslmode=require...",
    ),
    _database("its port is not a number", "postgres://u:p@h:port/db", f"{_READ}it cannot be read: expected ..."),
    _database(
        "nothing listens there",
        "postgres://127.0.0.1:9/db",
        "no answer from Postgres at 127.0.0.1:9: ...Connection refused",
        3,
    ),
    _database(
        "there is no such host",
        "postgres://nowhere.invalid/db",
        "no answer from Postgres at nowhere.invalid: ...",
        3,
        "keys list",
    ),
    _database(
        "its socket is not there",
        "postgres:///db?host=/nowhere",
        "no answer from Postgres at /nowhere: ...No such file or directory",
        3,
        "keys list",
    ),
)
"""Without a server."""

SERVER = (
    _database(
        "the password is wrong",
        "postgres://headrace:wrong@{address}/postgres",
        'Postgres cannot be used: password authentication failed for user "headrace"; correct the user'
        " and the password in HEADRACE_DATABASE_URL",
    ),
    _database(
        "there is no such user",
        "postgres://nobody:x@{address}/postgres",
        "Postgres cannot be used: password authentication failed for user ...",
        2,
        "keys list",
    ),
    _database(
        "there is no such database",
        "{server}/nowhere",
        'Postgres cannot be used: database "nowhere" does not exist; correct the name in'
        " HEADRACE_DATABASE_URL, or create the database with the encoding UTF8",
    ),
    _database(
        "the server has no TLS",
        "{server}/postgres?sslmode=require",
        "Postgres cannot be used: ...does not support SSL...; correct the parameters sslmode, ...",
    ),
    _database(
        "the database's encoding is SQL_ASCII",
        "{server}/ascii",
        "the database ascii has the encoding SQL_ASCII, which cannot hold every text: create one with"
        " CREATE DATABASE ascii_utf8 ENCODING 'UTF8' TEMPLATE template0",
    ),
    _database(
        "the database's encoding is LATIN1",
        "{server}/latin1",
        "the database latin1 has the encoding LATIN1, which cannot hold every text: ...",
    ),
    _database(
        "the role may not make tables",
        "postgres://guest:p@ss/w#rd?%@{address}/postgres",
        "Postgres refused: permission denied for schema public; connect as the database's owner, or"
        " grant the role CREATE on the database and on its schema",
    ),
    _database(
        "the tables are not there",
        "{server}/empty",
        'Postgres refused: relation "api_keys" does not exist; `headrace migrate` makes the tables',
        2,
        "keys list",
    ),
    _database(
        "the role may not read the tables",
        "postgres://guest:p@ss/w#rd?%@{address}/migrated",
        "Postgres refused: permission denied for table ...",
        2,
        "keys list",
    ),
    _database(
        "there is no such key",
        "{server}/migrated",
        "there is no API key hr_nobody; `headrace keys list` shows them",
        1,
        "keys revoke hr_nobody",
    ),
)
"""With a Postgres: ``server`` is a URL of it with its user, ``address`` its host and port."""

FILES = (
    Mistake(
        "the catalogue is not there",
        ("keys", "create", "--tenant", "t", "--plan", "pro"),
        "cannot read the catalogue /nowhere.toml: No such file or directory",
        env={"HEADRACE_CATALOG": "/nowhere.toml", "HEADRACE_DATABASE_URL": "postgres://h/db"},
    ),
    Mistake(
        "the catalogue is a directory",
        ("up",),
        "cannot read the catalogue {dir}: Is a directory",
        env={"HEADRACE_CATALOG": "{dir}"},
    ),
    _catalog("the catalogue is not TOML", b"x y", "{dir}/c.toml is not valid TOML: ...(at line 1, column 3)"),
    _catalog(
        "the catalogue is not UTF-8",
        b"#\xe9",
        "{dir}/c.toml is not valid TOML: it is not UTF-8: byte 1 cannot be decoded; save it as UTF-8",
    ),
    _catalog(
        "the catalogue has an unknown key",
        b"colour = 1",
        "{dir}/c.toml: ...colour: Extra inputs are not permitted...",
    ),
    Mistake(
        "the catalogue has no such plan",
        ("keys", "create", "--tenant", "t", "--plan", "gold"),
        "there is no plan 'gold'; the catalogue has ...",
        1,
        {"HEADRACE_DATABASE_URL": "postgres://h/db"},
    ),
    Mistake(
        "the home directory is not known",
        ("up", "--data-dir", "~nobody-here/data"),
        "cannot use the data directory ~nobody-here/data: Could not determine home directory.",
        1,
    ),
    Mistake(
        "the data directory cannot be made",
        ("up", "--data-dir", "/proc/headrace"),
        "cannot use the data directory /proc/headrace: No such file or directory",
        1,
    ),
    Mistake(
        "the data directory is a file",
        ("up", "--data-dir", "rows.csv"),
        "cannot use the data directory {dir}/rows.csv: File exists",
        1,
        files=SHEET,
    ),
    Mistake(
        "the URL of a store has a form that is not supported",
        ("up",),
        "HEADRACE_REDIS_URL: sockets are not supported for Redis; expected redis://:password@host:port/0",
        env={"HEADRACE_REDIS_URL": "unix:///x"},
    ),
    Mistake(
        "there is no API key",
        ("usage",),
        "there is no API key in .headrace/api_key; `headrace up` writes one there; or set"
        " HEADRACE_API_KEY, or name a file with --key-file",
    ),
    Mistake(
        "the file with the API key is not there", ("usage", "--key-file", "nowhere"), "there is no API key in nowhere"
    ),
    Mistake(
        "the file with the API key is a directory",
        ("usage", "--key-file", "."),
        "cannot read the API key in .: Is a directory",
    ),
    Mistake(
        "the file with the API key is something else",
        ("usage", "--key-file", "key"),
        "there is no API key in key, but something else",
        files={"key": b"\xff\x00\x01"},
    ),
    _run(
        "the prompt file is not UTF-8",
        "--prompt-file p",
        "p: it is not UTF-8: byte 3 cannot be decoded; save it as UTF-8",
        p=b"caf\xe9",
    ),
    _run(
        "both a prompt and a file of one",
        "--prompt x --prompt-file p",
        "give one of --prompt and --prompt-file",
        p=b"x",
    ),
    _run("the answers' form is not JSON", "--prompt x --response-format f", "f is not JSON: ...", f=b"{"),
    _run("metadata without a value", "--prompt x --metadata a", "--metadata takes KEY=VALUE, not 'a'"),
    _run("the results have no directory", "--prompt x -o nowhere/out.csv", "the directory nowhere does not exist"),
    _run(
        "the results would replace the rows",
        "--prompt x -o rows.csv",
        "rows.csv is the file to be read; the results need another",
    ),
    Mistake("the standard input is empty", ("submit", "-"), "the prompt is empty", env=KEY),
    Mistake(
        "the standard input is not UTF-8",
        ("submit", "-"),
        "the standard input is no prompt: it is not UTF-8: byte 1 cannot be decoded; save it as UTF-8",
        env=KEY,
        stdin=b"a\xff\xfe",
    ),
    Mistake(
        "the API's address is not a URL",
        ("usage", "--url", "localhost:8000"),
        "localhost:8000 is no address of an API: it begins with http:// or https://",
        env=KEY,
    ),
    Mistake(
        "the API's address is not a URL",
        ("health", "--url", "localhost:8000"),
        "localhost:8000 is no address of an API: it begins with http:// or https://",
    ),
    Mistake(
        "the API's address has no host",
        ("health", "--url", "http://"),
        "http:// is no address of an API: it has no host",
    ),
    Mistake(
        "the API's port is not a number",
        ("usage", "--url", "http://h:port"),
        "http://h:port is no address of an API: ...",
        env=KEY,
    ),
    Mistake(
        "Headrace does not run",
        ("usage", "--url", "http://127.0.0.1:9"),
        "no answer from http://127.0.0.1:9: Connection refused (`headrace up` starts Headrace here)",
        3,
        KEY,
    ),
    Mistake(
        "Headrace does not run",
        ("submit", "x", "--url", "http://127.0.0.1:9"),
        "no answer from http://127.0.0.1:9: Connection refused (`headrace up` starts Headrace here)",
        3,
        KEY,
    ),
    Mistake(
        "Headrace does not run",
        ("health", "--url", "http://127.0.0.1:9"),
        "nothing answers at http://127.0.0.1:9: Connection refused; `headrace up` starts Headrace here",
        3,
    ),
)
"""Without a server."""

USAGE = (
    (("submitt",), "No such command 'submitt'. Did you mean 'submit'?"),
    (("batch", "rnu"), "No such command 'rnu'. Did you mean 'run'?"),
    (("up", "--prt", "1"), "No such option: --prt"),
    (("status",), "Missing argument 'ID'"),
    (("up", "--port", "99999"), "Invalid value for '--port'"),
    (("batch", "run", "nowhere.csv"), "file 'nowhere.csv' does not exist"),
    (("batch", "run", "."), "file '.' is a directory"),
    (("submit", "x", "--wait", "soon"), "Invalid value for '--wait'"),
)
"""A command line that cannot be read: exit code 2, after a line on its use."""

_EXIT_CODES = """\
| code | |
|---|---|
| 0 | success; for a batch, every row completed |
| 1 | the job or some rows failed, or this machine is the problem: a directory, a port, a full disk |
| 2 | the command must be changed: a flag, a file or a setting is wrong, or the API refused the request |
| 3 | the API or Postgres does not answer; the same command may succeed later |
| 130 | Ctrl-C |
"""


_INTRODUCTION = """\
# The command line

`headrace --help` lists the commands; `headrace COMMAND --help` lists the flags of one. `make` installs the command as
`.venv/bin/headrace`.

An error is one line on the standard error, without a traceback, and an exit code. Only results go to the standard
output. When the reader of a pipe closes it (`| head -1`), the command ends without an error message. A character that
a terminal's encoding lacks is shown escaped (`\\U0001f600`). Files that people write (a catalogue, a key, a prompt) are
read as UTF-8 with or without a byte order mark, as UTF-16 with one, and with the line ends of any system.
"""


def document() -> str:
    """docs/command-line.md."""
    lines = [
        _INTRODUCTION,
        "## Exit codes",
        "",
        _EXIT_CODES,
        "API, relay and workers wait for a Postgres or Redis that does not answer. When waiting cannot help (a wrong",
        "password, a URL or a setting that cannot be read) they end with one line and the code 78, `EX_CONFIG`.",
        "",
        "## Mistakes",
        "",
        "A test makes each of these. `...` stands for any text.",
        "",
        "| mistake | command | says | code |",
        "|---|---|---|---|",
    ]
    for mistake in (*URLS, *SERVER, *FILES):
        says = mistake.says.replace("|", "\\|").replace("{dir}", "/path").replace("`", "'")
        command = " ".join(mistake.argv).replace("|", "\\|")
        lines.append(f"| {mistake.what} | `{command}` | `{says}` | {mistake.code} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
