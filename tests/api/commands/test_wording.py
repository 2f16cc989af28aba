"""How the command line words things, and what it makes of an API's answers; no server needed."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from api.commands.client import Api, Target, is_loopback, patiently
from api.commands.errors import CommandError, NoAnswer
from api.commands.transfer import fetch_results
from api.commands.watching import Pace
from api.commands.wording import duration, plain, size, usd


@pytest.mark.parametrize(
    ("amount", "shown"), [("0.000000", "$0.00"), ("0.001200", "$0.0012"), ("1234.5", "$1,234.50"), (None, "$0.00")]
)
def test_money_has_cents_and_no_idle_zeros(amount: str | None, shown: str) -> None:
    assert usd(amount) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.25, "0.2 s"), (59.4, "59 s"), (154, "2 min 34 s"), (7260, "2 h 1 min"), (200_000, "2 days 7 h")],
)
def test_durations_have_their_two_largest_units(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_sizes_have_one_unit() -> None:
    assert [size(number) for number in (12, 12_345, 12_345_678)] == ["12 bytes", "12.3 kB", "12.3 MB"]


def test_nothing_that_others_wrote_moves_the_cursor() -> None:
    assert plain("a\x1b[2Jb\u202ec\td") == "a\ufffd[2Jb\ufffdc\td"


def test_the_pace_is_that_of_the_last_moments() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    pace.add(0)
    assert pace.rows_per_s is None
    for second, done in ((20, 0), (25, 50), (30, 100)):
        now[0] = second
        pace.add(done)
    assert pace.rows_per_s == 10


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://localhost", True),
        ("http://[::1]:1", True),
        ("http://example.com", False),
    ],
)
def test_loopback_is_told_from_elsewhere(url: str, here: bool) -> None:
    assert is_loopback(url) == here


def test_a_key_with_a_line_break_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hr_a\nx-evil: 1")
    with pytest.raises(CommandError, match="something else"):
        Target("http://127.0.0.1:9", tmp_path / "key").find_key()


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def absent() -> None:
        raise NoAnswer("away")

    with pytest.raises(NoAnswer):
        patiently(absent, said.append, give_up_s=0.6)
    assert said.count("away") >= 2


@contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """A server that answers each connection with the next of these bytes, and hangs up; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"


def test_results_that_break_off_are_fetched_again_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_API_KEY", "hr_key")
    broken = CHUNKED + b"4\r\nid,o\r\n"
    target = tmp_path / "out.csv"
    target.write_text("before")
    with answering(broken, CHUNKED + b"4\r\nid,o\r\n5\r\nutput\r\n0\r\n\r\n") as url, Api(Target(url)) as api:
        assert fetch_results(api, "batch_1", target, {"format": "csv"}, Console(quiet=True)) == 9
    assert target.read_text() == "id,output"
    assert list(tmp_path.iterdir()) == [target]


def test_what_is_not_headrace_is_said_to_be_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_API_KEY", "hr_key")
    page = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\n<p/>"
    with (
        answering(page) as url,
        Api(Target(url)) as api,
        pytest.raises(CommandError, match="is not Headrace"),
    ):
        api.get("/v1/batches")
