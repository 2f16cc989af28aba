"""The proof: a real prompt travels from POST to a real language model and back, over real servers."""

import httpx

from tests.stack import Database, Stack


def test_a_prompt_becomes_an_answer(stack: Stack, database: Database) -> None:
    """POST -> Postgres -> relay -> Celery -> worker -> model -> Postgres -> /status."""
    stack.relay()
    stack.worker("small", concurrency=4)
    _, url = stack.api()
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {database.api_key}"}, timeout=70) as client:
        submitted = client.post(
            "/v1/jobs",
            json={"prompt": "Name a colour.", "max_tokens": 12, "temperature": 0, "metadata": {"case": "proof"}},
            headers={"Idempotency-Key": "proof-1"},
        )
        assert submitted.status_code == 202
        job = submitted.json()
        assert job["status"] == "queued"
        assert submitted.headers["location"] == job["status_url"] == f"/status/{job['id']}"

        finished = client.get(job["status_url"], params={"wait": 60}).json()
        assert finished["status"] == "completed"
        assert finished["result"]["text"].strip()
        assert finished["result"]["model"] == "smollm2-135m"
        assert (finished["tier"], finished["queue"], finished["progress"]) == ("small", "small", 1.0)
        (attempt,) = finished["attempts"]
        assert (attempt["provider"], attempt["outcome"]) == ("llamacpp", "completed")
        assert attempt["usage"] == finished["usage"]
        assert 0 < finished["usage"]["output_tokens"] <= 12
        assert finished["cost_usd"] == "0.000000"
        assert attempt["time_to_first_token_ms"] <= attempt["duration_ms"]
        assert job["created_at"] <= finished["started_at"] <= finished["finished_at"]

        again = client.post(
            "/v1/jobs",
            json={"prompt": "Name a colour.", "max_tokens": 12, "temperature": 0, "metadata": {"case": "proof"}},
            headers={"Idempotency-Key": "proof-1"},
        )
        assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")
        assert again.json() == finished
        assert client.post(f"/v1/jobs/{job['id']}/cancel").json()["code"] == "job_finished"
    assert database.value("SELECT count(*) FROM jobs") == 1


def test_an_api_that_is_killed_in_mid_submission_loses_and_doubles_nothing(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {}})
    stack.relay()
    stack.worker()
    process, url = stack.api()
    port = int(url.rsplit(":", 1)[1])
    headers = {"Authorization": f"Bearer {database.api_key}"}
    accepted: dict[int, str] = {}
    number, kills = 0, [40, 80]
    while number < 120:
        if kills and number == kills[0]:
            kills.pop(0)
            process.kill()  # the next submissions meet a dead server, and are sent again to its successor
            process.wait()
        try:
            answer = httpx.post(
                f"{url}/v1/jobs",
                json={"prompt": f"prompt {number}", "max_tokens": 16},
                headers={**headers, "Idempotency-Key": f"key-{number}"},
            )
        except httpx.TransportError:
            process, url = stack.api(port)
            continue
        assert answer.status_code in (200, 202)
        accepted[number] = answer.json()["id"]
        number += 1
    database.wait_until_finished()
    database.assert_each_completed_once(120)
    ids = {f"job_{row['id'].hex}" for row in database.rows("SELECT id FROM jobs")}
    assert ids == set(accepted.values())
