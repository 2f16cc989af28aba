"""Celery on Redis as it comes, with a task that does nothing but count itself."""

import os

import redis
from celery import Celery

app = Celery("bare", broker=os.environ["HEADRACE_REDIS_URL"])
app.conf.update(task_ignore_result=True, broker_transport_options={"global_keyprefix": "bare:"})
_client = redis.Redis.from_url(os.environ["HEADRACE_REDIS_URL"])


@app.task(name="bare.noop")
def noop() -> None:
    """Nothing, counted: the benchmark has no other way to see the end without a result backend."""
    _client.incr("bare:done")
