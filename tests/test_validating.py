"""A batch whose file is being read when the API is killed is read by another API process."""

import json

import httpx

from tests.stack import Database, Stack, kill, wait_until

ROWS = 120_000


def test_a_batch_survives_the_death_of_the_api_that_reads_its_file(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {}})
    process, url = stack.api()
    headers = {"authorization": f"Bearer {database.api_key}"}
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
    line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    content = "\n".join(json.dumps({"custom_id": f"r{number}", **line}) for number in range(ROWS)).encode()
    with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        form = {"purpose": "batch"}
        file = client.post("/v1/files", files={"file": ("rows.jsonl", content)}, data=form).json()
        wanted = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = client.post("/v1/batches", json=wanted).json()
    assert batch["status"] == "validating"
    reading = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'headrace-validator'"
    wait_until(lambda: database.value("SELECT count(*) FROM batch_rows") > 0, interval_s=0.01)
    kill(process)
    wait_until(lambda: database.value(reading) == 0)
    assert database.one("SELECT status, total FROM batches") == {"status": "validating", "total": 0}
    assert 0 < database.value("SELECT count(*) FROM batch_rows") < ROWS
    stack.api()
    wait_until(lambda: database.value("SELECT status FROM batches") == "in_progress")
    row = database.one("SELECT count(*) AS rows, max(number) AS last FROM batch_rows")
    assert (row["rows"], row["last"], database.value("SELECT total FROM batches")) == (ROWS, ROWS, ROWS)
    assert database.value("SELECT count(*) FROM intakes") == 0
