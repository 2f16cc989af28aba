"""The small parts: locks, ports, logs, the terminal, processes of strangers."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from api.local import ports, processes
from api.local.errors import LocalError
from api.local.lock import DirectoryLock
from api.local.logs import RotatingLog, Terminal, tail
from api.local.processes import StopStep


def test_a_lock_has_one_holder_at_a_time(tmp_path: Path) -> None:
    first, second = DirectoryLock(tmp_path / "lock"), DirectoryLock(tmp_path / "lock")
    first.acquire()
    first.acquire()
    with pytest.raises(LocalError, match=f"process {os.getpid()}"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_a_lock_ends_with_its_holder(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from api.local.lock import DirectoryLock\n"
        "DirectoryLock(Path(sys.argv[1])).acquire(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "lock")], check=False)
    lock = DirectoryLock(tmp_path / "lock")
    lock.acquire()
    lock.release()


def test_a_port_in_use_is_passed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        assert not ports.port_is_free("127.0.0.1", taken)
        assert ports.choose_port("127.0.0.1", [taken]) != taken


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_an_address_of_nobody_here_is_one_line(host: str) -> None:
    with pytest.raises(LocalError, match=f"cannot listen on {host}"):
        ports.port_is_free(host, 8000)


def test_a_log_keeps_its_size_and_the_file_before_it(tmp_path: Path) -> None:
    with RotatingLog(tmp_path / "a.log", limit=1000) as log:
        for number in range(100):
            log.write(b"%03d %s\n" % (number, b"x" * 45))
    assert (tmp_path / "a.log").stat().st_size <= 1000
    assert (tmp_path / "a.log.1").stat().st_size <= 1000
    assert tail(tmp_path / "a.log", 1)[0].startswith("099")
    assert (tmp_path / "a.log").stat().st_mode & 0o777 == 0o600


def test_the_tail_of_no_file_is_empty(tmp_path: Path) -> None:
    assert tail(tmp_path / "none") == []


def test_lines_carry_their_process_name() -> None:
    stream = io.StringIO()
    terminal = Terminal(stream)
    terminal.show("api", "hello")
    terminal.show("worker-remote", "hello")
    terminal.close()
    assert stream.getvalue() == "api        | hello\nworker-remote | hello\n"


def test_a_terminal_that_takes_nothing_blocks_nobody() -> None:
    """Ctrl-S, or a pipe that nobody reads."""
    stuck = threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            stuck.wait()
            return len(text)

    terminal = Terminal(Stuck(), backlog=10)
    for _ in range(1000):
        terminal.show("api", "line")
    terminal.close(timeout_s=0.1)
    stuck.set()


def test_colour_is_for_terminals_and_people_who_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    for no_color, coloured in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", no_color)
        stream = Tty()
        terminal = Terminal(stream)
        terminal.show("api", "hello")
        terminal.close()
        assert ("\x1b[" in stream.getvalue()) is coloured


def test_a_stranger_that_ignores_its_signal_is_killed() -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as stranger:
        assert stranger.stdout is not None
        stranger.stdout.readline()
        processes.stop_strangers([stranger.pid], [StopStep(signal.SIGTERM, 0.1)])
        assert not processes.is_alive(stranger.pid), "a process that only its parent has to notice is gone"
    assert stranger.returncode == -signal.SIGKILL


def test_a_process_is_known_by_its_command_line_and_directory(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as process:
        while not processes.command_line(process.pid):
            time.sleep(0.01)  # between fork and exec it has none
        assert processes.command_line(process.pid) == "sleep 60"
        assert processes.working_in(tmp_path.resolve(), "sleep") == [process.pid]
        assert processes.working_in(tmp_path.resolve(), "postgres") == []
        process.kill()
    assert processes.command_line(process.pid) == ""
