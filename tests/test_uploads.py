"""Uploads that break off: whoever dies or hangs up in the middle, nothing can run, and nothing is left behind."""

import asyncio
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx

from models.database import create_engine
from models.ids import new_id
from models.wakeups import Wakeups
from tests.stack import Database, Stack, kill, wait_until
from workers.maintenance import Maintenance

HEAD = (
    b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nSay {{text}}\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\nid,text\n'
)
TAIL = b"\r\n--x--\r\n"
ROW = b"1,the wheel turns and the mill grinds and nothing of the grain is lost\n"


def connected(url: str, key: str, length: int) -> socket.socket:
    """A connection on which an upload of so many bytes has begun."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(
        b"POST /v1/batches/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        + f"Authorization: Bearer {key}\r\nContent-Length: {length}\r\n\r\n".encode()
    )
    return connection


def send_whole(url: str, key: str, rows: int) -> socket.socket:
    """A connection on which an upload was sent whole, whose answer nobody has read."""
    body = ROW * rows
    connection = connected(url, key, len(HEAD) + len(body) + len(TAIL))
    connection.sendall(HEAD)
    connection.sendall(body)
    connection.sendall(TAIL)
    return connection


def copying(database: Database) -> int:
    """How many clerks have committed rows of a batch that has not begun."""
    return int(database.value("SELECT count(*) FROM intakes WHERE NOT abandoned"))


def clerks_of(process: subprocess.Popen[bytes]) -> list[int]:
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def assert_nothing_is_stored(database: Database) -> None:
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'headrace-intake'"
    wait_until(lambda: database.value(query) == 0, 10)
    assert database.value("SELECT count(*) FROM batches") == 0
    database.rows("UPDATE intakes SET touched_at = now() - interval '1 hour'")
    asyncio.run(sweep_intakes(database.url))
    assert database.value("SELECT count(*) FROM batch_rows") == 0
    assert database.value("SELECT count(*) FROM intakes") == 0


async def sweep_intakes(url: str) -> None:
    """Delete what dead clerks wrote, as a relay does."""
    engine, wakeups = create_engine(url, name="tests"), Wakeups("redis://127.0.0.1:1")
    await Maintenance(engine, engine, wakeups, writer=new_id(), free=()).sweep_intakes()
    await wakeups.close()
    await engine.dispose()


def test_an_upload_that_breaks_off_is_stored_never_in_part(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {}})
    process, url = stack.api()
    with connected(url, database.api_key, 10_000_000) as connection:  # cut off while the file comes in
        connection.sendall(HEAD + ROW * 50_000)
    assert_nothing_is_stored(database)

    with send_whole(url, database.api_key, 200_000):  # gone while the file is read
        wait_until(lambda: copying(database), 30, 0.01)
    assert_nothing_is_stored(database)

    connection = send_whole(url, database.api_key, 200_000)
    wait_until(lambda: copying(database), 30, 0.01)
    clerks = clerks_of(process)
    assert clerks
    kill(process)
    connection.close()
    wait_until(lambda: not any(Path(f"/proc/{clerk}/root").exists() for clerk in clerks), 10)
    assert_nothing_is_stored(database)

    _, url = stack.api()
    with send_whole(url, database.api_key, 2000) as connection:
        assert b"202" in connection.recv(20)
    assert database.value("SELECT total FROM batches") == 2000
    assert database.value("SELECT count(*) FROM batch_rows") == 2000


def test_a_clerk_that_dies_is_a_refusal_and_the_next_upload_has_another(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {}})
    process, url = stack.api()
    with send_whole(url, database.api_key, 200_000) as connection:
        wait_until(lambda: copying(database), 30, 0.01)
        for clerk in clerks_of(process):
            subprocess.run(["kill", "-9", str(clerk)], check=True)
        assert b"422" in connection.recv(20)
    assert_nothing_is_stored(database)
    with send_whole(url, database.api_key, 10) as connection:
        assert b"202" in connection.recv(20)


def test_postgres_going_away_in_the_middle_is_said_and_the_upload_may_be_sent_again(
    stack: Stack, database: Database
) -> None:
    stack.catalog({"echo": {}})
    _, url = stack.api()
    stop = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'headrace-intake'"
    with send_whole(url, database.api_key, 200_000) as connection:
        wait_until(lambda: copying(database), 30, 0.01)
        database.rows(stop)
        assert b"503" in connection.recv(20)
    assert_nothing_is_stored(database)


def test_other_tenants_are_answered_while_files_are_read(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {}})
    _, url = stack.api()
    headers = {"authorization": f"Bearer {database.api_key}"}
    answers: list[bytes] = []

    def upload() -> None:
        with send_whole(url, database.api_key, 100_000) as connection:
            answers.append(connection.recv(20))

    threads = [threading.Thread(target=upload) for _ in range(3)]
    with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        path = client.post("/v1/jobs", json={"prompt": "Hi"}).raise_for_status().json()["status_url"]
        for thread in threads:
            thread.start()
        reads = 0
        while any(thread.is_alive() for thread in threads):
            assert client.get(path).status_code == 200
            reads += 1
            time.sleep(0.01)
        for thread in threads:
            thread.join()
    assert [answer[9:12] for answer in answers] == [b"202"] * 3
    assert reads > 10  # while one was read, not after it
    assert database.value("SELECT sum(total) FROM batches") == 300_000


def test_every_row_of_a_file_is_answered_by_its_own_prompt(stack: Stack, database: Database) -> None:
    stack.catalog({"echo": {}})
    _, url = stack.api()
    stack.relay()
    stack.worker()
    data = 'id,the text\n1,"a ""quoted"" cell, {{id}}"\n2,"two\nlines \\ and \ttab"\n3,wörld \U0001f600\n'
    for system in ("Be brief.", "You are {{id}}."):
        response = httpx.post(
            f"{url}/v1/batches/upload",
            headers={"authorization": f"Bearer {database.api_key}"},
            files={"file": ("a.csv", data.encode())},
            data={"prompt": "Say {{ the text }}!", "system": system, "max_tokens": "64"},
            timeout=30,
        )
        assert response.status_code == 202, response.text
    wait_until(lambda: database.count("completed") == 6)
    database.assert_each_completed_once(6)
    asked = database.rows("SELECT request FROM jobs ORDER BY batch_id, batch_row")
    prompts = ['Say a "quoted" cell, {{id}}!', "Say two\nlines \\ and \ttab!", "Say wörld \U0001f600!"]
    systems = ["Be brief."] * 3 + ["You are 1.", "You are 2.", "You are 3."]
    assert [row["request"] for row in asked] == [
        {
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": prompt}],
            "max_tokens": 64,
        }
        for system, prompt in zip(systems, prompts * 2, strict=True)
    ]
