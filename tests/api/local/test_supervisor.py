"""The supervisor with real processes: it starts, watches, restarts, hurries and leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from api.local.errors import Interrupted, LocalError, StartError
from api.local.processes import StopStep, is_alive, wait_until_gone
from api.local.supervisor import ProcessSpec, Supervisor

ENV = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONUNBUFFERED": "1"}
SLEEP = "import time; time.sleep(600)"
STUBBORN = """
import signal, time
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
print("up"); time.sleep(600)
"""


class Shown(list[tuple[str, str]]):
    """What a supervisor showed, line by line."""

    def add(self, name: str, line: str) -> None:
        self.append((name, line))

    def of(self, name: str) -> list[str]:
        return [line for shown, line in self if shown == name]


@pytest.fixture
def shown() -> Shown:
    return Shown()


@pytest.fixture
def supervisor(tmp_path: Path, shown: Shown) -> Iterator[Supervisor]:
    with Supervisor(tmp_path / "logs", shown.add) as supervisor:
        yield supervisor


def script(
    name: str,
    code: str,
    *,
    ready: Callable[[], bool] | None = None,
    start_timeout_s: float = 30.0,
    stop: Sequence[StopStep] = (StopStep(signal.SIGTERM, 10.0),),
    restart: bool = True,
) -> ProcessSpec:
    return ProcessSpec(
        name=name,
        argv=[sys.executable, "-S", "-c", code],
        env=ENV,
        ready=ready,
        start_timeout_s=start_timeout_s,
        stop=stop,
        restart=restart,
    )


def until(condition: Callable[[], object], timeout_s: float = 20.0) -> Callable[[], None]:
    """Work for `run_during`: wait for a condition."""

    def wait() -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.01)

    return wait


@contextmanager
def later(*actions: tuple[float, Callable[[], object]]) -> Iterator[None]:
    timers = [threading.Timer(delay, action) for delay, action in actions]
    for timer in timers:
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
            timer.join()


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def pid_of(supervisor: Supervisor, name: str) -> int:
    pid = supervisor.pid_of(name)
    assert pid is not None
    return pid


def test_a_process_that_dies_is_started_again(supervisor: Supervisor, shown: Shown) -> None:
    supervisor.start(script("sleeper", SLEEP))
    first = pid_of(supervisor, "sleeper")
    os.kill(first, signal.SIGKILL)
    supervisor.run_during(until(lambda: supervisor.pid_of("sleeper") not in (None, first)))
    assert "sleeper ended (killed by SIGKILL); starting it again in 1 s" in shown.of("headrace")


def test_a_process_that_keeps_dying_is_started_ever_more_rarely(supervisor: Supervisor, shown: Shown) -> None:
    supervisor.start(script("failing", "raise SystemExit(3)"))
    supervisor.run_during(until(lambda: len(shown.of("headrace")) >= 2))
    assert shown.of("headrace")[:2] == [
        "failing ended (exit code 3); starting it again in 1 s",
        "failing ended (exit code 3); starting it again in 2 s",
    ]


def test_a_process_that_need_not_be_restarted_is_not(supervisor: Supervisor, shown: Shown) -> None:
    supervisor.start(script("once", "print('done')", restart=False))
    supervisor.run_during(until(lambda: shown.of("headrace")))
    assert shown.of("headrace") == ["once ended (exit code 0)"]
    assert shown.of("once") == ["done"]


def test_a_command_line_may_change_from_start_to_start(tmp_path: Path, shown: Shown) -> None:
    starts: list[int] = []

    def argv() -> Sequence[str]:
        starts.append(len(starts))
        if len(starts) == 2:
            raise LocalError("its port is taken")
        return [sys.executable, "-S", "-c", f"print('start {len(starts)}')"]

    with Supervisor(tmp_path, shown.add) as supervisor:
        supervisor.start(ProcessSpec(name="changing", argv=argv, env=ENV))
        supervisor.run_during(until(lambda: len(shown.of("changing")) == 2))
    assert shown.of("changing") == ["start 1", "start 3"]
    assert any("its port is taken" in line for line in shown.of("headrace"))


def test_start_waits_until_the_process_is_ready(supervisor: Supervisor, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    code = f"import time, pathlib; time.sleep(0.3); pathlib.Path({str(flag)!r}).touch(); time.sleep(600)"
    supervisor.start(script("slow", code, ready=flag.exists))
    assert flag.exists()


def test_a_process_that_never_comes_up_is_an_error_with_its_last_words(supervisor: Supervisor) -> None:
    with pytest.raises(StartError, match=r"broken did not start \(exit code 1\)") as caught:
        supervisor.start(script("broken", "raise ValueError('no such thing')", ready=lambda: False))
    assert caught.value.details[-1] == "ValueError: no such thing"


def test_a_silent_process_is_given_up_and_ended(supervisor: Supervisor) -> None:
    with pytest.raises(StartError):
        supervisor.start(script("silent", SLEEP, ready=lambda: False, start_timeout_s=0.1))
    assert supervisor.pid_of("silent") is None


def test_a_program_that_does_not_exist_is_one_line(supervisor: Supervisor) -> None:
    with pytest.raises(LocalError, match="cannot run /no/such/program: No such file"):
        supervisor.start(ProcessSpec(name="nothing", argv=["/no/such/program"], env=ENV))


def test_a_task_that_fails_is_an_error_and_one_that_ends_well_is_not(supervisor: Supervisor) -> None:
    supervisor.complete(script("good", "print('ok')"))
    with pytest.raises(StartError, match=r"bad failed \(exit code 2\)") as caught:
        supervisor.complete(script("bad", "import sys; print('the reason'); sys.exit(2)"))
    assert caught.value.details == ("the reason",)


def test_output_is_logged_line_by_line_even_without_a_last_newline(
    supervisor: Supervisor, tmp_path: Path, shown: Shown
) -> None:
    supervisor.complete(script("talker", "import sys; print('one'); sys.stderr.write('two')"))
    assert shown.of("talker") == ["one", "two"]
    assert (tmp_path / "logs" / "talker.log").read_text() == "one\ntwo\n"


def test_a_flood_of_output_neither_blocks_nor_fills_the_disk(supervisor: Supervisor, tmp_path: Path) -> None:
    code = "import sys\nfor _ in range(120): sys.stdout.write('x' * 99_999 + '\\n')"
    supervisor.complete(script("flood", code))
    sizes = [file.stat().st_size for file in (tmp_path / "logs").glob("flood.log*")]
    assert len(sizes) == 2
    assert max(sizes) <= 5_100_000


def test_everything_is_stopped_in_reverse_order(tmp_path: Path, shown: Shown) -> None:
    code = (
        "import signal, sys, time\n"
        "def stop(*_): print('stopped'); sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop); print('up')\n"
        "while True: time.sleep(600)"
    )
    with Supervisor(tmp_path, shown.add) as supervisor:
        for name in ("first", "second", "third"):
            supervisor.start(script(name, code))
        supervisor.run_during(until(lambda: len(shown) == 3))
        pids = [pid_of(supervisor, name) for name in ("first", "second", "third")]
    stopped = [name for name, line in shown if line == "stopped"]
    assert stopped == ["third", "second", "first"]
    assert not any(is_alive(pid) for pid in pids)


def test_what_a_process_left_in_its_group_is_ended_with_it(tmp_path: Path, shown: Shown) -> None:
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-S', '-c', {STUBBORN!r}]).pid)"
    with Supervisor(tmp_path, shown.add) as supervisor:
        supervisor.start(script("parent", code, restart=False))
        supervisor.run_during(until(lambda: shown.of("headrace")))
    assert wait_until_gone([int(shown.of("parent")[0])], 5)


def test_a_process_that_ignores_its_signal_is_killed(tmp_path: Path, shown: Shown) -> None:
    with Supervisor(tmp_path, shown.add) as supervisor:
        supervisor.start(script("stubborn", STUBBORN, stop=(StopStep(signal.SIGTERM, 0.2),)))
        supervisor.run_during(until(lambda: shown.of("stubborn")))
        pid = pid_of(supervisor, "stubborn")
    assert not is_alive(pid)


def test_a_signal_ends_the_run_and_a_second_one_shortens_the_stop(tmp_path: Path, shown: Shown) -> None:
    patient = (StopStep(signal.SIGTERM, 60.0),)
    began = time.monotonic()
    with Supervisor(tmp_path, shown.add) as supervisor:
        for name in ("first", "second"):
            supervisor.start(script(name, STUBBORN, stop=patient))
        supervisor.run_during(until(lambda: len(shown) == 2))
        with later((0.0, interrupt), (0.6, interrupt)):
            supervisor.run()
            supervisor.stop()
    assert time.monotonic() - began < 60
    assert "stopping at once" in shown.of("headrace")


def test_one_request_sent_twice_at_once_is_one_request(tmp_path: Path, shown: Shown) -> None:
    """`timeout` signals its child and then the group; `make` and a terminal do the like."""
    with Supervisor(tmp_path, shown.add) as supervisor:
        supervisor.start(script("sleeper", STUBBORN, stop=(StopStep(signal.SIGTERM, 1.0),)))
        with later((0.0, interrupt), (0.02, interrupt)):
            supervisor.run()
            supervisor.stop()
    assert "stopping at once" not in shown.of("headrace")


def test_a_signal_during_a_start_stops_what_was_started(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        supervisor.start(script("early", SLEEP))
        pid = pid_of(supervisor, "early")
        with later((0.3, interrupt)), pytest.raises(Interrupted):
            supervisor.start(script("never", SLEEP, ready=lambda: False))
    assert not is_alive(pid)


def test_the_callers_signal_handlers_come_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
    with Supervisor(tmp_path):
        assert signal.getsignal(signal.SIGINT) is not before[0]
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
    assert after == before


def test_work_beside_the_processes_returns_or_raises_as_it_did(supervisor: Supervisor) -> None:
    assert supervisor.run_during(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        supervisor.run_during(lambda: 1 // 0)


def test_a_supervisor_killed_with_kill_9_leaves_nothing_running(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
from pathlib import Path
from api.local.supervisor import ProcessSpec, Supervisor
with Supervisor(Path({str(tmp_path)!r})) as supervisor:
    for name in ("one", "two"):
        supervisor.start(ProcessSpec(name=name, argv=["sleep", "600"], env=dict(os.environ)))
        print(supervisor.pid_of(name), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False, text=True)
    assert done.returncode == -signal.SIGKILL
    assert wait_until_gone([int(pid) for pid in done.stdout.split()], 20)


def test_an_idle_supervisor_sleeps(supervisor: Supervisor, shown: Shown) -> None:
    supervisor.start(script("sleeper", SLEEP))
    with later((0.6, interrupt)):
        before = time.process_time()
        supervisor.run()
    assert time.process_time() - before < 0.1


def test_output_names_are_safe_to_show(supervisor: Supervisor, shown: Shown) -> None:
    supervisor.complete(script("binary", "import os; os.write(1, bytes(range(128, 140)) + b'\\n')"))
    assert re.fullmatch("\ufffd+", shown.of("binary")[0])
