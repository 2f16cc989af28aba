"""The design that batches are compared to: a Celery task for each row, and an UPDATE of its own for each."""

import os
import threading

import psycopg
from celery import Celery

app = Celery("naive_rows", broker=os.environ["HEADRACE_REDIS_URL"])
app.conf.update(
    task_ignore_result=True,
    worker_hijack_root_logger=False,
    broker_transport_options={"global_keyprefix": "naive_rows:"},
)
_URL = os.environ.get("HEADRACE_DATABASE_URL", "").replace("+psycopg", "")
_local = threading.local()

SCHEMA = """
    DROP TABLE IF EXISTS naive_rows;
    CREATE TABLE naive_rows (id int PRIMARY KEY, prompt text NOT NULL, status text NOT NULL DEFAULT 'queued',
                             result jsonb, finished_at timestamptz)
"""


@app.task(name="naive_rows.run")
def run(row_id: int, prompt: str) -> None:
    """Answer a row as the mock provider does, and record it over this thread's connection."""
    if not hasattr(_local, "connection"):
        _local.connection = psycopg.connect(_URL, autocommit=True)
    _local.connection.execute(
        "UPDATE naive_rows SET status = 'completed', result = jsonb_build_object('text', %s::text),"
        " finished_at = now() WHERE id = %s",
        (prompt, row_id),
    )
