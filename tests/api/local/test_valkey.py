"""The embedded Valkey, started, crashed and started again for real."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from api.local.errors import LocalError
from api.local.valkey import EmbeddedValkey
from tests.stack import wait_until


@pytest.fixture
def server(data_dir: Path) -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey(data_dir, first_port=0)
    yield server
    server.stop()


def client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, decode_responses=True)


def test_it_keeps_an_append_only_file_and_evicts_nothing(server: EmbeddedValkey) -> None:
    with client(server.start()) as connection:
        settings = connection.config_get("*")
    assert isinstance(settings, dict)
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["bind"] == "127.0.0.1"
    assert settings["save"] == ""


def test_a_client_without_the_password_is_refused(server: EmbeddedValkey) -> None:
    server.start()
    once = Retry(NoBackoff(), 0)
    with redis.Redis(port=server.port, retry=once) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()


def test_what_was_written_survives_kill_9(server: EmbeddedValkey) -> None:
    url = server.start()
    with client(url) as connection:
        for number in range(500):
            connection.rpush("queue", number)
    server.kill()
    assert server.start() == url
    with client(url) as connection:
        assert connection.llen("queue") == 500


def crash_with_damage(server: EmbeddedValkey, damage: Callable[[bytes], bytes]) -> None:
    with client(server.start()) as connection:
        connection.rpush("queue", "first")
        connection.rpush("queue", "second")
    (file,) = (server.directory / "appendonlydir").glob("*.incr.aof")
    wait_until(lambda: b"second" in file.read_bytes())  # `everysec` may hold a write back while it syncs
    server.kill()
    file.write_bytes(damage(file.read_bytes()))


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda log: log[:-3], ["first"]),
        (lambda log: log + bytes(4096), ["first", "second"]),
        (lambda log: b"nonsense" + log, []),
    ],
    ids=["cut within a command", "zeros after a power cut", "beyond repair"],
)
def test_a_damaged_append_only_file_is_no_obstacle(
    server: EmbeddedValkey, damage: Callable[[bytes], bytes], left: list[str]
) -> None:
    crash_with_damage(server, damage)
    with client(server.start()) as connection:
        assert connection.lrange("queue", 0, -1) == left


def test_a_wiped_server_starts_empty_at_the_same_address(server: EmbeddedValkey) -> None:
    url = server.start()
    with client(url) as connection:
        connection.set("key", "value")
        with pytest.raises(LocalError, match="stop Valkey"):
            server.wipe()
    server.kill()
    server.wipe()
    assert server.start() == url
    with client(url) as connection:
        assert connection.dbsize() == 0


def test_a_second_owner_of_the_directory_is_refused(data_dir: Path, server: EmbeddedValkey) -> None:
    server.start()
    with pytest.raises(LocalError, match="in use by another Headrace"):
        EmbeddedValkey(data_dir, first_port=0).start()


def test_a_directory_with_a_space_and_a_quote_in_its_name_works(data_dir: Path) -> None:
    server = EmbeddedValkey(data_dir / 'it\'s "here"', first_port=0)
    try:
        with client(server.start()) as connection:
            assert connection.ping()
    finally:
        server.stop()
