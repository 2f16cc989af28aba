"""Batches in the engine room: rows become jobs, are counted, and the batch ends."""

from tests.batches import assert_rows_ended_once, batch, counts, new_batch, wait_until_ended
from tests.stack import Database, Stack


def test_a_batch_runs_to_its_end_and_its_counts_are_those_of_its_jobs(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {}})
    batch_id = new_batch(database, [f"row {n}" for n in range(1, 301)])
    stack.relay()
    stack.worker()
    assert wait_until_ended(database, batch_id) == "completed"
    assert_rows_ended_once(database, batch_id)
    assert counts(database, batch_id)["completed"] == 300
    job = database.one("SELECT * FROM jobs WHERE batch_id = %s AND batch_row = 7", batch_id)
    assert job["request"] == {
        "max_tokens": 16,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "row 7!"}],
    }
    assert job["result"]["text"] == "row 7!"
    assert (job["priority"], job["batch_round"]) == (4, 0)
    ended = batch(database, batch_id)
    assert ended["output_file_id"] is not None
    assert ended["error_file_id"] is None
    assert database.value("SELECT count(*) FROM events WHERE type = 'batch.completed'") == 1
