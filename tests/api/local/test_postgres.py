"""The embedded Postgres, started, crashed and started again for real."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from api.local.errors import LocalError, StartError
from api.local.postgres import EmbeddedPostgres
from api.local.processes import is_alive, wait_until_gone, working_in


@pytest.fixture
def server(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(data_dir, first_port=0)
    yield server
    server.stop()


def connect(url: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(url.replace("+psycopg", ""), autocommit=True)


def value(url: str, query: str) -> object:
    with connect(url) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def test_it_is_durable_and_listens_on_this_machine_only(server: EmbeddedPostgres) -> None:
    url = server.start()
    assert url.startswith("postgresql+psycopg://headrace:")
    assert url.endswith(f"@127.0.0.1:{server.port}/headrace")
    for setting, expected in {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "max_connections": "300",
        "password_encryption": "scram-sha-256",
        "server_encoding": "UTF8",
        "data_checksums": "on",
    }.items():
        assert value(url, f"SHOW {setting}") == expected, setting


def test_a_wrong_password_is_refused(server: EmbeddedPostgres) -> None:
    url = server.start().replace("headrace:", "headrace:x", 1)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        connect(url)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to change users")
def test_root_runs_it_as_another_user(server: EmbeddedPostgres) -> None:
    server.start()
    assert server.pid is not None
    assert Path(f"/proc/{server.pid}").stat().st_uid != 0
    assert server.directory.stat().st_mode & 0o777 == 0o700


def test_committed_rows_survive_kill_9(server: EmbeddedPostgres) -> None:
    url = server.start()
    with connect(url) as connection:
        connection.execute("CREATE TABLE kept (id int)")
        for number in range(50):
            connection.execute("INSERT INTO kept VALUES (%s)", [number])
    server.kill()
    assert not server.is_running()
    assert server.start() == url, "clients that know the URL find the server again"
    assert value(url, "SELECT count(*) FROM kept") == 50


def test_a_stop_and_a_start_keep_rows_port_and_password(data_dir: Path, server: EmbeddedPostgres) -> None:
    url = server.start()
    with connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS id")
        server.stop()
    again = EmbeddedPostgres(data_dir, first_port=0)
    try:
        # The port can be lost to another test meanwhile; the password cannot.
        assert again.start().rsplit(":", 1)[0] == url.rsplit(":", 1)[0]
        assert value(again.url, "SELECT id FROM kept") == 7
    finally:
        again.stop()


def test_a_second_owner_of_the_directory_is_refused(data_dir: Path, server: EmbeddedPostgres) -> None:
    server.start()
    with pytest.raises(LocalError, match=f"in use by another Headrace \\(process {os.getpid()}\\)"):
        EmbeddedPostgres(data_dir, first_port=0).start()
    assert server.is_ready()


def test_a_server_left_by_a_killed_owner_is_replaced(data_dir: Path, server: EmbeddedPostgres) -> None:
    """The owner and its guardian are both killed, so nobody stops the server before the next start does."""
    script = (
        "import os, signal, sys; from pathlib import Path; from api.local.postgres import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(Path(sys.argv[1]), first_port=0); server.start(); print(server.pid, flush=True)\n"
        "os.kill(server._guardian._process.pid, signal.SIGKILL); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    owner = subprocess.run(
        [sys.executable, "-c", script, str(data_dir)], stdout=subprocess.PIPE, check=False, text=True
    )
    assert owner.returncode == -signal.SIGKILL
    left = int(owner.stdout)
    assert is_alive(left)
    url = server.start()
    assert not is_alive(left)
    assert value(url, "SELECT 1") == 1


def test_a_killed_owner_takes_its_server_along(data_dir: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from api.local.postgres import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(Path(sys.argv[1]), first_port=0); server.start(); print(server.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    owner = subprocess.run(
        [sys.executable, "-c", script, str(data_dir)], stdout=subprocess.PIPE, check=False, text=True
    )
    assert wait_until_gone([int(owner.stdout)], 20)
    assert working_in(data_dir / "postgres", "postgres") == []


def test_a_pid_file_that_names_a_stranger_is_no_obstacle(server: EmbeddedPostgres) -> None:
    """After a crash and a reboot the recorded id may be any other program's."""
    url = server.start()
    server.kill()
    pid_file = server.directory / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        try:
            assert server.start() == url
            assert stranger.poll() is None, "the stranger was left alone"
        finally:
            stranger.kill()


def test_backends_that_outlive_a_crash_do_not_block_the_next_start(server: EmbeddedPostgres) -> None:
    """A busy backend notices the death of its parent late, and holds the shared memory until then."""
    url = server.start()
    with socket.create_connection(("127.0.0.1", server.port)), connect(url) as busy:
        row = busy.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        backend = int(str(row[0]))
        os.kill(backend, signal.SIGSTOP)
        server.kill()
        assert server.start() == url
        assert not is_alive(backend)


def test_an_initialisation_that_was_cut_short_is_begun_again(data_dir: Path, server: EmbeddedPostgres) -> None:
    half = data_dir / "postgres.init"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    assert value(server.start(), "SELECT 1") == 1
    assert not half.exists()


def test_files_that_are_no_database_are_never_deleted(data_dir: Path, server: EmbeddedPostgres) -> None:
    (data_dir / "postgres").mkdir()
    (data_dir / "postgres" / "thesis.txt").write_text("mine")
    with pytest.raises(LocalError, match="holds files but no Postgres database"):
        server.start()
    assert (data_dir / "postgres" / "thesis.txt").read_text() == "mine"


def test_another_programs_port_is_left_to_it(data_dir: Path, server: EmbeddedPostgres) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        (data_dir / "postgres.port").write_text(f"{taken}\n")
        server.start()
        assert server.port != taken


def test_a_promised_port_that_is_taken_is_an_error(server: EmbeddedPostgres) -> None:
    server.start()
    port = server.port
    server.kill()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(LocalError, match=f"port {port}"):
        server.start()


def test_a_server_that_cannot_start_says_what_it_wrote(server: EmbeddedPostgres) -> None:
    server.start()
    server.stop()
    (server.directory / "pg_hba.conf").write_text("nonsense\n")
    with pytest.raises(StartError) as caught:
        server.start()
    assert any("pg_hba.conf" in line for line in caught.value.details)


def test_stopping_does_not_wait_for_clients(server: EmbeddedPostgres) -> None:
    with closing(connect(server.start())) as connection:
        connection.execute("BEGIN")
        pid = server.pid
        assert pid is not None
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < server.stop_steps[0].timeout_s
    assert not is_alive(pid)
    assert working_in(server.directory, "postgres") == []
