"""``headrace submit``, ``status``, ``cancel`` and ``usage`` as a person types them."""

import csv
import json
import re

from tests.api.commands.conftest import PROGRAM, Person


def test_a_prompt_is_answered_on_the_standard_output(person: Person) -> None:
    done = person.run("submit", "hello", "--model", "echo", "--wait", "20")
    assert done.stdout == "hello\n"
    assert re.match(r"job_[0-9a-f]{32}, completed, \d+ \+ \d+ tokens, \$0\.\d+\n", done.stderr)


def test_a_prompt_is_read_from_the_standard_input(person: Person) -> None:
    done = person.run("submit", "-", "--model", "echo", "--wait", "20", "--json", stdin="from a pipe\n")
    job = json.loads(done.stdout)
    assert (job["status"], job["result"]["text"]) == ("completed", "from a pipe\n")


def test_a_submitted_job_is_read_and_cancelled_by_its_id(person: Person) -> None:
    job_id = person.run("submit", "slowly", "--model", "slow", "--max-tokens", "4").stdout.strip()
    shown = person.run("status", job_id, "--wait", "20").stdout
    assert re.search(r"status +completed", shown), shown
    assert re.search(r"answer +slowly", shown)
    finished = person.run("cancel", job_id, expect=2)
    assert finished.stderr == "headrace: The job is completed.\n"
    waiting = person.run("submit", "never", "--model", "stuck").stdout.strip()
    assert json.loads(person.run("cancel", waiting, "--json").stdout)["status"] in ("cancelled", "in_progress")


def test_a_job_that_is_not_done_in_time_says_how_to_wait_longer(person: Person) -> None:
    done = person.run("submit", "never", "--model", "stuck", "--wait", "0.3", expect=3)
    assert re.search(rf"wait longer with: {re.escape(PROGRAM)} status job_[0-9a-f]{{32}} --wait 60\n", done.stderr)


def test_a_refusal_is_a_sentence_and_an_exit_code(person: Person) -> None:
    done = person.run("submit", "hello", "--model", "nobody", expect=2)
    assert re.fullmatch(r"headrace: .*nobody.*\n", done.stderr)
    document = json.loads(person.run("submit", "hello", "--model", "nobody", "--json", expect=2).stdout)
    assert document["code"] == "model_not_found"
    assert person.run("submit", " ", expect=2).stderr == "headrace: the prompt is empty\n"


def test_usage_is_a_table_csv_or_json(person: Person) -> None:
    person.run("submit", "counted", "--model", "echo", "--wait", "20")
    assert re.search(r"echo +[1-9]", person.run("usage", "--group-by", "model").stdout)
    (header, *rows) = csv.reader(person.run("usage", "--group-by", "model,day", "--csv").stdout.splitlines())
    assert header[:2] == ["model", "day"]
    assert rows
    assert json.loads(person.run("usage", "--json", "--to", "2020-01-01").stdout)["data"] == []
    assert "2020" not in person.run("usage", "--from", "nonsense", expect=2).stdout
