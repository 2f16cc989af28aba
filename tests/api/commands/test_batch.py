"""``headrace batch`` as a person types it, against a real stack."""

import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Self

import pytest

from tests.api.commands.conftest import PROGRAM, Person, Running, lines_of
from tests.stack import wait_until

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
BATCH_ID = re.compile(r"batch_[0-9a-f]{32}")


def batch_in(text: str) -> str:
    found = BATCH_ID.search(text)
    assert found, text
    return found[0]


def batches(running: Running) -> int:
    return int(running.database.value("SELECT count(*) FROM batches"))


def test_a_sheet_becomes_a_sheet_of_answers(person: Person) -> None:
    person.write(
        "rows.csv", 'id,text\r\n1,"two\r\nlines"\r\n2,"a, b"\r\n' + "".join(f"{n},n{n}\r\n" for n in range(3, 41))
    )
    done = person.run(
        *("batch", "run", "rows.csv", "--prompt", "Say {{text}}", "--model", "echo", "-o", "out.csv"),
        *("--max-tokens", "8", "--id-column", "id", "--name", "first", "--metadata", "for=tests", "--window", "1h"),
    )
    assert "40 of 40 rows completed" in done.stderr
    assert done.stdout == ""
    rows = person.sheet("out.csv")
    assert [row["id"] for row in rows] == [str(number) for number in range(1, 41)]
    assert rows[0]["output"] == "Say two\r\nlines"
    assert rows[1]["output"] == "Say a, b"
    assert list(rows[0]) == ["id", "text", "output", "error", "model", "input_tokens", "output_tokens", "cost_usd"]
    assert sorted(path.name for path in person.directory.iterdir()) == ["out.csv", "rows.csv"]
    shown = json.loads(person.run("batch", "show", batch_in(done.stderr), "--json").stdout)
    assert (shown["name"], shown["metadata"], shown["completion_window"]) == ("first", {"for": "tests"}, "1h")


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What a command tells aside, up to the line with a text."""
    assert process.stderr is not None
    told = ""
    while text not in told:
        line = process.stderr.readline()
        assert line, told
        told += line
    return told


def test_ctrl_c_leaves_the_batch_running_and_says_how_to_come_back(person: Person) -> None:
    person.write("rows.csv", lines_of([f"row {number}" for number in range(40)]))
    ask = ("batch", "run", "rows.csv", "--prompt", "{{text}}", "--model", "slow", "-o", "out.csv")
    with person.start(*ask) as running:
        head = read_until(running, "/40 rows")
        running.send_signal(signal.SIGINT)
        _, rest = running.communicate(timeout=20)
        assert running.returncode == 130, rest
    assert "goes on without you" in rest
    assert not (person.directory / "out.csv").exists()
    (command,) = [line.strip() for line in rest.splitlines() if line.strip().startswith(PROGRAM)]
    assert command == f"{PROGRAM} batch watch {batch_in(head)} -o out.csv"
    done = person.run(*shlex.split(command)[3:])
    assert "40 of 40 rows completed" in done.stderr
    assert [row["output"] for row in person.sheet("out.csv")] == [f"row {number}" for number in range(40)]


def test_a_file_with_problems_is_refused_with_their_lines(person: Person, running: Running) -> None:
    before = batches(running)
    person.write("rows.csv", 'id,text\r\n1,fine\r\n2,"quoted\r\nnewline"\r\n1,again\r\n4,too,many\r\n')
    ask = ("batch", "run", "rows.csv", "--prompt", "Say {{text}}", "--model", "echo", "-o", "out.csv")
    done = person.run(*ask, "--id-column", "id", expect=2)
    table = [re.split(r"\s{2,}", line) for line in done.stderr.splitlines() if re.match(r"\d", line)]
    assert [row[0] for row in table] == ["5", "6"], done.stderr
    missing = person.run("batch", "run", "rows.csv", "--prompt", "{{txt}}", "--model", "echo", expect=2)
    assert "There is no column 'txt'" in missing.stderr
    window = person.run("batch", "run", "rows.csv", "--prompt", "{{text}}", "--window", "soon", expect=2)
    assert "completion_window: send a number" in window.stderr
    document = json.loads(person.run(*ask, "--id-column", "id", "--json", expect=2).stdout)
    assert [entry["line"] for entry in document["errors"]] == [5, 6]
    assert batches(running) == before
    assert not (person.directory / "out.csv").exists()


def test_a_dry_run_estimates_and_submits_nothing(person: Person, running: Running) -> None:
    before = batches(running)
    person.write("rows.csv", lines_of(["a", "b", "c"]))
    ask = (
        "batch",
        "run",
        "rows.csv",
        "--prompt",
        "Say {{text}}",
        "--model",
        "echo",
        "--max-tokens",
        "1000",
        "--dry-run",
    )
    shown = person.run(*ask).stdout
    assert re.search(r"rows +3", shown), shown
    estimate = json.loads(person.run(*ask, "--json").stdout)
    assert estimate["rows"] == 3
    assert batches(running) == before


def test_failed_rows_can_be_tried_again(person: Person) -> None:
    person.write("rows.csv", lines_of([f"row {number}" for number in range(8)]))
    ask = ("batch", "run", "rows.csv", "--prompt", "{{text}}", "--model", "flaky", "-o", "out.csv")
    first = person.run(*ask, expect=1)
    assert "5 of 8 rows completed, 3 failed" in first.stderr
    assert sum(row["error"] != "" for row in person.sheet("out.csv")) == 3
    (command,) = [line for line in first.stderr.splitlines() if f"{PROGRAM} batch retry" in line]
    again = person.run(*shlex.split(command.partition(f": {PROGRAM} ")[2]))
    assert "8 of 8 rows completed" in again.stderr
    assert [row["output"] for row in person.sheet("out.csv")] == [f"row {number}" for number in range(8)]


def test_an_api_that_restarts_does_not_end_the_watch(person: Person, running: Running) -> None:
    person.write("rows.csv", lines_of([f"row {number}" for number in range(40)]))
    ask = ("batch", "run", "rows.csv", "--prompt", "{{text}}", "--model", "slow", "-o", "out.csv")
    with person.start(*ask) as watching:
        read_until(watching, "/40 rows")
        running.api.kill()
        running.api.wait()
        read_until(watching, "trying again")
        running.restart_api()
        _, rest = watching.communicate(timeout=60)
        assert watching.returncode == 0, rest
    assert len(person.sheet("out.csv")) == 40


def test_a_batch_can_be_steered(person: Person) -> None:
    person.write("rows.csv", lines_of([f"row {number}" for number in range(200)]))
    ask = ("batch", "run", "rows.csv", "--prompt", "{{text}}", "--model", "slow", "--name", "steered", "--detach")
    come_back = person.run(*ask, "--max-parallel", "2").stdout.strip()
    batch_id = batch_in(come_back)
    assert come_back == f"{PROGRAM} batch watch {batch_id}"
    assert person.run("batch", "pause", batch_id).stdout == f"{batch_id} is paused\n"
    assert re.search(rf"{batch_id} +paused +\d+/200 .* steered", person.run("batch", "list").stdout)
    assert re.search(r"paused +requested", person.run("status", batch_id).stdout)
    assert person.run("batch", "resume", batch_id).stdout == f"{batch_id} is in_progress\n"
    assert person.run("cancel", batch_id).stdout.startswith(f"{batch_id} is cancel")
    ended = person.run("batch", "watch", batch_id, "--json", expect=1)
    batch = json.loads(ended.stdout)
    assert (batch["status"], sum(batch["counts"].values())) == ("cancelled", 400)
    assert "the batch is cancelled" in ended.stderr


def test_results_come_at_any_time_as_csv_or_jsonl(person: Person) -> None:
    person.write("rows.csv", lines_of(["one", "=1+1"]))
    ask = ("batch", "run", "rows.csv", "--prompt", "{{text}}", "--model", "echo", "-o", "out.jsonl")
    batch_id = batch_in(person.run(*ask).stderr)
    lines = [json.loads(line) for line in (person.directory / "out.jsonl").read_text().splitlines()]
    assert [line["output"] for line in lines] == ["one", "=1+1"]
    on_screen = person.run("batch", "results", batch_id).stdout
    assert "'=1+1" in on_screen
    assert "'=1+1" not in person.run("batch", "results", batch_id, "--raw").stdout
    jsonl = person.run("batch", "results", batch_id, "--format", "jsonl", "--order", "finished").stdout
    assert len(jsonl.splitlines()) == 2


def request_line(number: int, **body: object) -> str:
    whole = {"model": "echo", "messages": [{"role": "user", "content": f"row {number}"}], **body}
    return (
        json.dumps({"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": whole}) + "\n"
    )


def test_a_file_of_openai_requests_runs_as_it_is(person: Person) -> None:
    person.write("requests.jsonl", "".join(request_line(number) for number in range(5)))
    done = person.run("batch", "run", "requests.jsonl", "-o", "out.jsonl", "--name", "as OpenAI has it")
    assert "5 of 5 rows completed" in done.stderr
    lines = [json.loads(line) for line in (person.directory / "out.jsonl").read_text().splitlines()]
    assert [(line["custom_id"], line["output"]) for line in lines] == [(f"r{n}", f"row {n}") for n in range(5)]
    refused = person.run("batch", "run", "requests.jsonl", "--model", "slow", expect=2)
    assert refused.stderr == "headrace: the lines of requests.jsonl are whole requests; leave out --model\n"


def test_marks_blank_lines_and_no_last_line_end_hide_no_request(person: Person) -> None:
    lines = "\ufeff\ufeff\n" + request_line(0).replace("\n", "\r\n") + "   \n" + request_line(1).rstrip("\n")
    person.write("requests.jsonl", lines)
    done = person.run("batch", "run", "requests.jsonl", "-o", "out.jsonl")
    assert "2 of 2 rows completed" in done.stderr
    (person.directory / "requests.jsonl").write_bytes(lines.lstrip("\ufeff").encode("utf-16"))
    done = person.run("batch", "run", "requests.jsonl", "--prompt", "{{text}}", "-o", "out2.jsonl", expect=2)
    assert "The file is UTF-16 text; JSONL is UTF-8: save it as that." in done.stderr


def test_results_of_a_sheet_in_another_encoding_are_written_as_a_spreadsheet_wants_them(person: Person) -> None:
    (person.directory / "rows.csv").write_bytes("id;text\r\n1;Köln\r\n".encode("windows-1252"))
    refused = person.run("batch", "run", "rows.csv", "--prompt", "{{text}}", "-o", "out.csv", expect=2)
    assert refused.stderr.count("is not UTF-8") == 2  # the summary, and the table
    person.run("batch", "run", "rows.csv", "--prompt", "{{text}}", "--encoding", "windows-1252", "-o", "out.csv")
    assert (person.directory / "out.csv").read_bytes().startswith("\ufeffid;text;output;".encode())


def test_wrong_openai_requests_are_told_by_line(person: Person) -> None:
    person.write("requests.jsonl", request_line(1) + request_line(2, max_tokens="many") + request_line(1))
    done = person.run("batch", "run", "requests.jsonl", "-o", "out.jsonl", expect=2)
    assert "the batch is failed" in done.stderr
    table = [line.split()[0] for line in done.stderr.splitlines() if re.match(r"\d+ ", line)]
    assert table == ["2", "3"], done.stderr
    assert not (person.directory / "out.jsonl").exists()


def test_results_never_take_the_place_of_the_input(person: Person, running: Running) -> None:
    before = batches(running)
    person.write("rows.csv", lines_of(["precious"]))
    done = person.run("batch", "run", "rows.csv", "--prompt", "{{text}}", "-o", "./rows.csv", expect=2)
    assert done.stderr == "headrace: rows.csv is the file to be read; the results need another\n"
    done = person.run("batch", "run", "rows.csv", "--prompt", "{{text}}", "-o", "missing/out.csv", expect=2)
    assert done.stderr == "headrace: the directory missing does not exist\n"
    assert batches(running) == before


def test_an_api_that_is_not_there_is_one_line(person: Person) -> None:
    person.write("rows.csv", lines_of(["a"]))
    for command in (("batch", "run", "rows.csv", "--prompt", "{{text}}"), ("batch", "list"), ("usage",)):
        done = person.run(*command, "--url", "http://127.0.0.1:9", expect=3)
        assert re.search(r"^headrace: no answer from http://127\.0\.0\.1:9: .+\n\Z", done.stderr, re.MULTILINE), (
            done.stderr
        )


def test_a_key_that_is_not_known_is_one_line_that_says_where_it_came_from(person: Person) -> None:
    person.write("key", f"hr_{'0' * 12}_{'0' * 48}\n")
    done = person.run("batch", "list", "--key-file", "key", expect=2)
    assert re.fullmatch(r"headrace: .*\(the key is that of key\)\n", done.stderr)
    del person.environment["HEADRACE_API_KEY"]
    done = person.run("batch", "list", expect=2)
    assert "there is no API key in .headrace/api_key" in done.stderr


def test_what_is_not_there_is_one_line(person: Person) -> None:
    done = person.run("batch", "watch", f"batch_{'0' * 32}", expect=2)
    assert done.stderr == "headrace: There is no such batch.\n"
    person.run("batch", "show", "../../livez", expect=2)


class Terminal:
    """A command on a terminal of its own; ``seen`` is what it showed, without colours and movements."""

    def __init__(self, person: Person, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            person.argv(*arguments),
            env=person.environment | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
            cwd=person.directory,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def read_until(self, text: str, timeout_s: float = 30.0) -> None:
        """Read what is shown until a text is; fails the test when it is not in time."""
        deadline = time.monotonic() + timeout_s
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self._master], [], [], 0.2)[0]:
                self.seen += ESCAPES.sub("", os.read(self._master, 65536).decode(errors="replace"))

    def type(self, text: str) -> None:
        """Type on the keyboard."""
        os.write(self._master, text.encode())


def test_on_a_terminal_the_estimate_is_shown_first_and_progress_as_a_bar(person: Person, running: Running) -> None:
    before = batches(running)
    person.write("rows.csv", lines_of([f"row {number}" for number in range(24)]))
    ask = ("batch", "run", "rows.csv", "--prompt", "{{text}}", "--model", "slow", "-o", "out.csv")
    with Terminal(person, *ask) as declined:
        declined.read_until("Submit?")
        assert re.search(r"rows +24", declined.seen), declined.seen
        declined.type("n\n")
        assert declined.process.wait(20) == 1
    assert batches(running) == before
    with Terminal(person, *ask) as agreed:
        agreed.read_until("Submit?")
        agreed.type("\n")
        agreed.read_until("rows/s")
        agreed.read_until("24 of 24 rows completed")
        assert agreed.process.wait(20) == 0
        assert "━" in agreed.seen
        assert "so far" in agreed.seen
    assert len(person.sheet("out.csv")) == 24


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_a_file_that_is_there_is_replaced_only_by_a_whole_one(person: Person, name: str) -> None:
    person.write("rows.csv", lines_of(["new"]))
    person.write(name, "old")
    before = (person.directory / name).stat().st_ino
    person.run("batch", "run", "rows.csv", "--prompt", "{{text}}", "--model", "echo", "-o", name)
    written = Path(person.directory / name)
    assert "new" in written.read_text()
    assert written.stat().st_ino != before
    wait_until(lambda: len(list(person.directory.iterdir())) == 2)
