"""Pipes, disks, locales and keys that are pressed: what a command writes goes where it can, and never as a traceback.

Reported of other programs: Backblaze/B2_Command_Line_Tool#1071, bskinn/sphobjinv#332 (pipes), microsoft/winml-cli#535,
hakancelikdev/unimport#177 (encodings), Nayjest/lm-proxy#79, oauth2-proxy/oauth2-proxy#2551 (byte order marks).
"""

import codecs
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from api.commands.client import Target
from models.catalog import LLM, read_catalog
from models.textfiles import decode_text
from tests.api.commands.conftest import Person, Running
from tests.stack import ROOT, wait_until
from workers.providers.keys import read_key

EMOJI = "caf\u00e9 \U0001f600"
SHELL = shlex.join([sys.executable, "-m", "api.cli"])
CATALOG = """
[tiers.a]
queue = "a"
pool = "cpu"
[llms.x]
tier = "a"
provider = "mock"
context_window = 4096
input_price = "1"
output_price = "2"
"""
ENTRY = {"tier": "a", "provider": "mock", "context_window": 4096, "input_price": "1", "output_price": "2"}
Write = Callable[[str], bytes]
MARKED: dict[str, Write] = {
    "UTF-8": lambda text: text.encode(),
    "UTF-8 with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "UTF-16 of PowerShell": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "line ends of Windows": lambda text: text.replace("\n", "\r\n").encode(),
    "all of Windows": lambda text: codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode(),
}


def sh(person: Person, command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of the shell in which ``headrace`` is the command line."""
    line = f'set -o pipefail; headrace() {{ {SHELL} "$@"; }}; {command}'
    done = subprocess.run(
        ["bash", "-c", line],
        env=person.environment | environment,
        cwd=person.directory,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert b"Traceback" not in done.stderr, done.stderr
    assert b"Exception ignored" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "latin-1"}, b"caf\xe9 \\U0001f600\n"),
        ({"PYTHONIOENCODING": "ascii"}, b"caf\\xe9 \\U0001f600\n"),
        ({"PYTHONIOENCODING": "cp1252"}, b"caf\xe9 \\U0001f600\n"),
        ({"LC_ALL": "C"}, EMOJI.encode() + b"\n"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b"caf\\xe9 \\U0001f600\n"),
        ({"LC_ALL": "POSIX"}, EMOJI.encode() + b"\n"),
    ],
    ids=lambda given: str(given) if isinstance(given, dict) else None,
)
def test_an_answer_is_shown_whatever_the_terminal_can_show(
    person: Person, environment: dict[str, str], shown: bytes
) -> None:
    (person.directory / "prompt").write_text(EMOJI, encoding="utf-8")
    done = sh(person, "headrace submit - --model echo --wait 20 < prompt", **environment)
    assert (done.returncode, done.stdout) == (0, shown), done.stderr


def test_a_name_that_is_not_utf8_is_a_name(person: Person) -> None:
    name = os.fsdecode(b"caf\xe9.csv")
    (person.directory / name).write_bytes(b"text\r\na\r\n")
    done = sh(person, "headrace batch run $'caf\\xe9.csv' --prompt '{{text}}' --model echo --yes -o $'out\\xe9.csv'")
    assert done.returncode == 0, done.stderr
    assert b"a" in (person.directory / os.fsdecode(b"out\xe9.csv")).read_bytes()
    done = sh(person, "headrace batch run $'\\xe9.csv' --prompt x")
    assert done.returncode == 2
    for command in (
        "submit $'caf\\xe9' --model echo --wait 20",
        "batch run $'caf\\xe9.csv' --prompt $'\\xe9' --yes",
        "batch run $'caf\\xe9.csv' --prompt x --stop $'\\xe9' --yes",
    ):
        done = sh(person, f"headrace {command}")
        assert (done.returncode, done.stderr.splitlines()[-1]) == (2, b"headrace: an argument is not UTF-8")


def test_a_reader_that_has_had_enough_ends_a_command_quietly(person: Person) -> None:
    for number in range(3):
        person.run("submit", f"counted {number}", "--model", "echo", "--wait", "20")
    for command in (
        "headrace usage --group-by key,day",
        "headrace usage --json",
        "headrace batch list",
        "headrace --help",
    ):
        done = sh(person, f"{command} | true")
        assert (done.stdout, done.stderr) == (b"", b""), command
        assert done.returncode in (0, 1)
        unbuffered = sh(person, f"{command} | head -1", PYTHONUNBUFFERED="1")
        assert unbuffered.stderr == b"", command


@pytest.mark.parametrize(
    "command", ["usage", "usage --json", "usage --csv", "--help", "--version", "submit x --model echo --wait 20"]
)
def test_a_full_disk_is_one_line(person: Person, command: str) -> None:
    done = sh(person, f"headrace {command} > /dev/full")
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr.splitlines()[-1]


def test_closed_streams_are_no_traceback(person: Person) -> None:
    assert sh(person, "headrace submit - --model echo <&-").returncode == 2
    assert sh(person, "headrace usage <&-").returncode == 0
    done = sh(person, "headrace usage >&-")
    assert done.returncode == 1
    assert b"cannot write the output" in done.stderr
    done = sh(person, "headrace submit kept --model echo --wait 20 2>&-")
    assert (done.returncode, done.stdout) == (0, b"kept\n")
    assert sh(person, "headrace usage --url http://127.0.0.1:9 >&- 2>&-").returncode == 3


def test_ctrl_c_ends_a_wait_with_130(person: Person, running: Running) -> None:
    submitted = "SELECT count(*) FROM jobs"
    before = running.database.value(submitted)
    with person.start("submit", "never", "--model", "stuck", "--wait", "60") as process:
        wait_until(lambda: running.database.value(submitted) > before)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 130
        assert said == "headrace: interrupted\n"


def test_ctrl_c_ends_the_console_script_quietly_while_it_is_imported(person: Person) -> None:
    interrupted = (
        "import builtins, api.console\n"
        "real = builtins.__import__\n"
        "def slow(name, *rest):\n"
        "    if name == 'api.cli': raise KeyboardInterrupt\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = slow\n"
        "api.console.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", interrupted], cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (130, b"")


def test_the_command_to_come_back_with_can_be_typed(person: Person) -> None:
    done = person.run("submit", "again", "--model", "echo")
    assert done.stderr.startswith("read its answer with: ")
    command = done.stderr.partition(": ")[2]
    again = subprocess.run(
        ["bash", "-c", command], env=person.environment, cwd=person.directory, capture_output=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert b"again" in again.stdout


def test_flags_have_no_type_and_there_is_a_version(person: Person) -> None:
    for command in ((), ("submit",), ("batch", "run"), ("batch",), ("keys", "list"), ("up",), ("demo",)):
        shown = person.run(*command, "--help").stdout
        assert "bool" not in shown
        assert "--help" in shown
    assert person.run("--version").stdout == person.run("-V").stdout
    assert person.run("--version").stdout.startswith("headrace 0.")


@pytest.mark.parametrize("write", MARKED.values(), ids=MARKED)
def test_files_that_people_write_have_the_marks_and_line_ends_of_any_system(write: Write, tmp_path: Path) -> None:
    assert decode_text(write("a\nb")).replace("\r\n", "\n") == "a\nb"
    catalog, key = tmp_path / "catalog.toml", tmp_path / "key"
    catalog.write_bytes(write(CATALOG))
    assert list(read_catalog(catalog).llms) == ["x"]
    key.write_bytes(write("hr_key\n"))
    assert Target("http://127.0.0.1:9", key).find_key() == ("hr_key", str(key))
    assert read_key(LLM.model_validate(ENTRY | {"api_key_file": key})) == "hr_key"


def test_a_batch_from_files_of_windows(person: Person, tmp_path: Path) -> None:
    write = MARKED["all of Windows"]
    (tmp_path / "key").write_bytes(MARKED["UTF-16 of PowerShell"](f"{person.environment.pop('HEADRACE_API_KEY')}\r\n"))
    (tmp_path / "prompt.txt").write_bytes(write("Say\n{{text}}"))
    (tmp_path / "form.json").write_bytes(write('{"type":\n"text"}'))
    (tmp_path / "rows.csv").write_bytes(write("text\n\u00e9\n"))
    person.run(
        *("batch", "run", "rows.csv", "--prompt-file", "prompt.txt", "--response-format", "form.json"),
        *("--key-file", "key", "--model", "echo", "--yes", "-o", "out.csv"),
    )
    assert person.sheet("out.csv")[0]["output"] == "Say\n\u00e9"
    done = sh(person, "headrace submit - --key-file key --model echo --wait 20 < prompt.txt")
    assert done.stdout.splitlines() == [b"Say", b"{{text}}"]
