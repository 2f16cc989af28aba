"""Two real LLMs in two tiers of one machine: jobs are routed between them, and fall back from one to the other."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.local_llms import MEDIUM, SMALL, catalog_with_another_file, file_of, needs_both
from tests.stack import Database, Stack

pytestmark = needs_both

Job = dict[str, Any]  # Any: JSON
QUESTION = "What is the capital of France?"
LONG = "one two three four five " * 450 + "What came first?"


@contextmanager
def both_tiers(stack: Stack, database: Database, catalog: Path | None = None) -> Iterator[Callable[..., Job]]:
    """The platform with both LLMs; gives what submits a job and returns it finished."""
    stack.settings["HEADRACE_OPTIONAL_LLMS"] = MEDIUM
    if catalog is not None:
        stack.settings["HEADRACE_CATALOG"] = str(catalog)
    stack.relay()
    stack.worker("small,medium", concurrency=4)
    _, url = stack.api()
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {database.api_key}"}, timeout=70) as client:

        def run(**fields: object) -> Job:
            body = {"prompt": QUESTION, "max_tokens": 16, "temperature": 0} | fields
            job = client.post("/v1/jobs", json={key: value for key, value in body.items() if value is not None})
            assert job.status_code == 202, job.text
            finished: Job = client.get(job.json()["status_url"], params={"wait": 60}).json()
            assert finished["status"] == "completed", finished
            return finished

        yield run


def outcomes(job: Job) -> list[tuple[str, str]]:
    return [(attempt["model"], attempt["outcome"]) for attempt in job["attempts"]]


def test_jobs_reach_the_llm_of_their_tier_and_auto_the_one_that_fits(stack: Stack, database: Database) -> None:
    with both_tiers(stack, database) as run:
        medium = run(model="medium")
        assert (medium["tier"], medium["queue"], outcomes(medium)) == ("medium", "medium", [(MEDIUM, "completed")])
        assert "Paris" in medium["result"]["text"]
        assert "Question:" not in medium["result"]["text"]
        assert medium["result"]["finish_reason"] == "stop"

        small = run(model="small")
        assert (small["queue"], outcomes(small)) == ("small", [(SMALL, "completed")])

        auto = run(model="auto", prompt=LONG, max_tokens=4)
        assert outcomes(auto) == [(MEDIUM, "completed")]
        assert {candidate["model"] for candidate in auto["routing"]["candidates"]} == {SMALL, MEDIUM}


def test_the_larger_llm_heeds_a_system_message_and_takes_over_a_prompt_too_long_for_the_small_one(
    stack: Stack, database: Database
) -> None:
    system = [{"role": "system", "content": "The capital of Atlantis is Headrace."}]
    asked = [{"role": "user", "content": "What is the capital of Atlantis?"}]
    with both_tiers(stack, database) as run:
        told = run(model=MEDIUM, prompt=None, messages=system + asked)
        untold = run(model=MEDIUM, prompt=None, messages=asked)
        assert "Headrace" in told["result"]["text"]
        assert "Headrace" not in untold["result"]["text"]

        long = run(model="small", prompt=LONG, max_tokens=4)
        assert outcomes(long) == [(SMALL, "failed"), (MEDIUM, "completed")]
        assert long["attempts"][0]["error"]["code"] == "context_length_exceeded"


def test_a_job_whose_model_file_is_broken_falls_back_to_the_other_tier(
    stack: Stack, database: Database, tmp_path: Path
) -> None:
    broken = tmp_path / "truncated.gguf"
    with file_of(MEDIUM).open("rb") as whole:
        broken.write_bytes(whole.read(20_000_000))
    with both_tiers(stack, database, catalog_with_another_file(tmp_path, MEDIUM, broken)) as run:
        job = run(model="medium")
        assert outcomes(job) == [(MEDIUM, "failed"), (SMALL, "completed")]
        assert job["attempts"][0]["error"]["message"] == "the model cannot be run here"
        assert "truncated.gguf" in "".join(log.read_text(errors="replace") for log in stack.directory.glob("*.log"))
        assert (job["tier"], job["result"]["model"]) == ("small", SMALL)
        assert outcomes(run(model="small")) == [(SMALL, "completed")]
