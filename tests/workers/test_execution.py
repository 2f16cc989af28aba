"""What happens to jobs in real workers when calls fail, time runs out or callers change their mind."""

import time

import redis

from models.wakeups import CANCEL
from tests.stack import Database, Stack, wait_until

FAILING = {"error": "overloaded", "output_tokens": 0}


def test_a_transient_error_is_retried_with_backoff_and_the_cost_of_each_attempt_is_booked(
    stack: Stack, database: Database
) -> None:
    flaky = {"retries": 20, "mock": {"error": "timeout", "error_calls": 15, "retry_after_s": 0.1}}
    stack.catalog({"flaky": flaky}, breaker={"min_calls": 1000})
    stack.relay()
    stack.worker()
    database.submit([f"prompt {n}" for n in range(20)], route=["flaky"])
    database.wait_until_finished()
    database.assert_each_completed_once(20)
    failed = database.rows("SELECT error, cost_usd FROM attempts WHERE outcome = 'failed'")
    assert failed
    assert {row["error"]["code"] for row in failed} == {"timeout"}
    assert all(row["cost_usd"] > 0 for row in failed)


def test_a_job_falls_back_across_tiers_when_its_llm_is_overloaded(stack: Stack, database: Database) -> None:
    stack.catalog({"down": {"mock": FAILING}, "up": {"tier": "spare"}})
    stack.relay()
    stack.worker("mock")
    stack.worker("spare")
    database.submit([f"prompt {n}" for n in range(5)], route=["down", "up"])
    database.wait_until_finished()
    database.assert_each_completed_once(5)
    jobs = database.rows("SELECT DISTINCT tier, queue, route_index, attempt_count FROM jobs")
    assert jobs == [{"tier": "spare", "queue": "spare", "route_index": 1, "attempt_count": 2}]
    llms = database.rows("SELECT DISTINCT number, llm, outcome FROM attempts ORDER BY number")
    assert [(row["llm"], row["outcome"]) for row in llms] == [("down", "failed"), ("up", "completed")]


def test_a_job_fails_with_the_last_error_when_retries_are_used_up(stack: Stack, database: Database) -> None:
    stack.catalog({"down": {"retries": 1, "mock": FAILING}})
    stack.relay()
    stack.worker()
    database.submit(["prompt"], route=["down"])
    database.wait_until_finished()
    job = database.one("SELECT status, error, attempt_count FROM jobs")
    assert (job["status"], job["attempt_count"]) == ("failed", 2)
    assert job["error"] == {"code": "overloaded", "message": "mock: overloaded", "retryable": True}


def test_what_the_provider_rejects_is_not_retried(stack: Stack, database: Database) -> None:
    stack.catalog({"strict": {"mock": {"error": "provider_rejected"}}, "spare": {}})
    stack.relay()
    stack.worker()
    database.submit(["prompt"], route=["strict", "spare"])
    database.wait_until_finished()
    assert database.one("SELECT status, attempt_count FROM jobs") == {"status": "failed", "attempt_count": 1}


def test_a_cancelled_job_stops_in_flight_and_its_usage_is_booked(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {"mock": {"latency_s": 60}}})
    stack.relay()
    stack.worker()
    (job_id,) = database.submit(["prompt"])
    wait_until(lambda: database.count("in_progress") == 1)
    database.rows("UPDATE jobs SET cancel_requested_at = now()")
    asked = time.monotonic()
    with redis.Redis.from_url(stack.settings["HEADRACE_REDIS_URL"]) as client:
        client.publish(CANCEL, job_id.hex)
    wait_until(lambda: database.count("cancelled") == 1, 10)
    assert time.monotonic() - asked < 0.9  # a heartbeat, the slower way, is a second away
    attempt = database.one("SELECT outcome, input_tokens FROM attempts")
    assert attempt == {"outcome": "cancelled", "input_tokens": 10}
    assert database.value("SELECT count(*) FROM ledger_entries") == 1


def test_a_cancellation_whose_wake_up_is_lost_is_learnt_from_the_heartbeat(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {"mock": {"latency_s": 60}}})
    stack.relay()
    stack.worker()
    database.submit(["prompt"])
    wait_until(lambda: database.count("in_progress") == 1)
    database.rows("UPDATE jobs SET cancel_requested_at = now()")
    wait_until(lambda: database.count("cancelled") == 1, 10)


def test_jobs_expire_in_the_queue_and_in_flight(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {"mock": {"latency_s": 60}}})
    stack.relay()
    database.submit(["waits"], queue="nobody", expires_in=1)
    stack.worker()
    database.submit(["runs"], expires_in=6)
    database.wait_until_finished(30)
    jobs = database.rows("SELECT status, error ->> 'code' AS code, attempt_count FROM jobs ORDER BY attempt_count")
    assert [tuple(job.values()) for job in jobs] == [("expired", "expired", 0), ("expired", "expired", 1)]


def test_a_long_running_job_keeps_its_lease(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {"mock": {"latency_s": 7}}})
    stack.relay()
    stack.worker()
    database.submit(["prompt"])
    database.wait_until_finished()
    assert database.value("SELECT count(*) FROM attempts") == 1


def test_a_rate_limited_job_without_a_fallback_waits_as_long_as_it_was_told(stack: Stack, database: Database) -> None:
    limited = {"error": "rate_limited", "error_calls": 1, "retry_after_s": 2, "output_tokens": 0}
    stack.catalog({"limited": {"mock": limited}})
    stack.relay()
    stack.worker()
    database.submit(["prompt"], route=["limited"])
    database.wait_until_finished()
    database.assert_each_completed_once(1)
    waited = "SELECT extract(epoch FROM max(started_at) - min(finished_at))::float FROM attempts"
    assert database.value(waited) >= 2


def test_a_request_that_is_too_long_goes_to_the_next_llm_with_a_larger_window(stack: Stack, database: Database) -> None:
    too_long = {"error": "context_length_exceeded", "output_tokens": 0}
    stack.catalog(
        {"small": {"mock": too_long}, "same": {}, "large": {"tier": "spare", "context_window": 9000}},
    )
    stack.relay()
    stack.worker("mock,spare")
    database.submit(["prompt"], route=["small", "same", "large"])
    database.submit(["prompt"], route=["small", "same"])
    database.wait_until_finished()
    jobs = database.rows("SELECT status, route_index, attempt_count, error ->> 'code' AS code FROM jobs ORDER BY id")
    assert [tuple(job.values()) for job in jobs] == [
        ("completed", 2, 2, None),
        ("failed", 0, 1, "context_length_exceeded"),
    ]
