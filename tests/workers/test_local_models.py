"""Local models in real workers: what is loaded is seen from outside, and a full memory loses no job."""

import httpx

from tests.stack import Database, Stack, wait_until
from tests.workers.engine.local_models import SMOLLM

LOCAL = {"provider": "llamacpp", "source": SMOLLM, "context_window": 512, "threads": 1}


def test_a_model_is_seen_where_it_is_loaded_after_a_job(stack: Stack, database: Database) -> None:
    stack.settings["HEADRACE_LEASE_S"] = "30"  # the report must not wait for the next heartbeat
    stack.catalog({"used": LOCAL, "unused": LOCAL})
    stack.relay()
    stack.worker()
    _, url = stack.api()
    headers = {"Authorization": f"Bearer {database.api_key}"}

    def loaded(name: str) -> list[dict[str, object]]:
        found: list[dict[str, object]] = httpx.get(f"{url}/v1/models/{name}", headers=headers).json()["loaded"]
        return found

    assert loaded("used") == []
    database.submit(["Name a colour."], route=["used"])
    database.wait_until_finished()
    wait_until(lambda: loaded("used"), 5)
    (where,) = loaded("used")
    assert str(where["worker"]).endswith("@test")
    assert where["quantization"] == "Q4_1"
    assert loaded("unused") == []
    assert database.count("completed") == 1


def test_with_a_full_memory_jobs_fall_back_and_the_crossing_is_recorded_once(stack: Stack, database: Database) -> None:
    for level in ("HOLD", "UNLOAD", "REFUSE"):
        stack.settings[f"HEADRACE_MEMORY_{level}_PERCENT"] = "0.01"  # any machine is fuller than that
    stack.catalog({"local": LOCAL, "echo": {}})
    stack.relay()
    stack.worker()
    database.submit(["a", "b", "c"], route=["local", "echo"])
    database.wait_until_finished()
    assert database.count("completed") == 3
    codes = database.rows("SELECT error ->> 'code' AS code FROM attempts WHERE llm = 'local'")
    assert {row["code"] for row in codes} == {"overloaded"}
    wait_until(lambda: database.value("SELECT count(*) FROM events"), 5)
    event = database.one("SELECT tenant_id, type, payload FROM events")
    assert (event["tenant_id"], event["type"]) == (None, "worker.memory")
    assert (event["payload"]["before"], event["payload"]["level"]) == ("normal", "refuse")
    assert event["payload"]["worker"].endswith("@test")
    assert 0 < event["payload"]["used_percent"] < 100


def test_a_broken_file_fails_its_jobs_at_once_and_the_others_go_on(stack: Stack, database: Database) -> None:
    broken = stack.directory / "broken.gguf"
    broken.write_bytes(b"GGUF\3\0\0\0")
    stack.catalog({"broken": LOCAL | {"source": str(broken)}, "whole": LOCAL})
    stack.relay()
    stack.worker()
    database.submit(["a", "b"], route=["broken"])
    database.submit(["c"], route=["whole"])
    database.wait_until_finished()
    failed = database.rows("SELECT error FROM jobs WHERE status = 'failed'")
    assert [row["error"]["code"] for row in failed] == ["internal", "internal"]
    assert all(row["error"]["message"] == "the model cannot be run here" for row in failed)
    logs = "".join(log.read_text(errors="replace") for log in stack.directory.glob("*.log"))
    assert f"the model file {broken} is cut off within its header" in logs
    assert database.count("completed") == 1
