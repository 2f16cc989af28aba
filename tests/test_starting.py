"""A process that can never work ends at its start with one line; one whose stores are away waits for them."""

import os
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import create_connection, create_server, socket

import pytest
import trustme
from kombu import Connection
from kombu.exceptions import OperationalError

from api.app import create_app
from api.local.valkey import EmbeddedValkey
from models.errors import ConfigurationError
from models.redis_access import require_redis
from models.session import SESSION, connect_arguments, require_database, require_session
from models.settings import read_settings
from models.urls import postgres_url, redis_url
from tests.stack import Database
from tests.starts import PROCESSES, end_of
from workers import relay
from workers.celery import celery_config
from workers.settings import WorkerSettings, WorkSettings

STARTS: dict[str, Callable[[], object]] = {"API": create_app, "relay": relay.main, "worker": celery_config}
FLOWER = ["-m", "celery", "-A", "workers.celery", "flower", "--port=0"]
SETTINGS = {
    "no URL of Postgres": ({"HEADRACE_DATABASE_URL": ""}, "HEADRACE_DATABASE_URL is not set"),
    "a wrong URL of Postgres": ({"HEADRACE_DATABASE_URL": "mysql://h/d"}, "HEADRACE_DATABASE_URL: mysql:// is not"),
    "no URL of Redis": ({"HEADRACE_REDIS_URL": ""}, "HEADRACE_REDIS_URL is not set"),
    "a wrong URL of Redis": ({"HEADRACE_REDIS_URL": "redis://h/jobs"}, "HEADRACE_REDIS_URL: the database of Redis is"),
    "no catalogue": ({"HEADRACE_CATALOG": "/nowhere.toml"}, "cannot read the catalogue /nowhere.toml: No such file"),
    "an optional LLM of nobody": ({"HEADRACE_OPTIONAL_LLMS": "x"}, "the catalogue has no optional LLM x"),
    "several at once": (
        {"HEADRACE_DATABASE_URL": "", "HEADRACE_REDIS_URL": "x"},
        "HEADRACE_DATABASE_URL is not set; HEADRACE_REDIS_URL: it is not a URL",
    ),
}


@pytest.fixture
def environment(database: Database, valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which every process starts."""
    for name in [name for name in os.environ if name.startswith("HEADRACE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HEADRACE_DATABASE_URL", database.url)
    monkeypatch.setenv("HEADRACE_REDIS_URL", valkey.url)
    return monkeypatch


def wrong_password(url: str) -> str:
    return re.sub(r":[^:@]*@", ":wrong@", url)


def said_at_the_end(start: Callable[[], object], capfd: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        start()
    assert ended.value.code == os.EX_CONFIG
    lines = capfd.readouterr().err.splitlines()
    assert [line.startswith("headrace: ") for line in lines if "[info" not in line] == [True], lines
    return lines[-1]


@pytest.mark.parametrize(("change", "sentence"), SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_a_setting_that_cannot_be_used_ends_the_start(
    start: Callable[[], object],
    change: dict[str, str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    stores = {"HEADRACE_DATABASE_URL": "postgres://127.0.0.1:9/db", "HEADRACE_REDIS_URL": "redis://127.0.0.1:9"}
    for name, value in (stores | change).items():
        monkeypatch.setenv(name, value)
    assert said_at_the_end(start, capfd).startswith(f"headrace: {sentence}")


@pytest.mark.parametrize("start", [create_app, relay.main], ids=["API", "relay"])
def test_a_store_that_refuses_for_good_ends_the_start(
    start: Callable[[], object], environment: pytest.MonkeyPatch, database: Database, capfd: pytest.CaptureFixture[str]
) -> None:
    environment.setenv("HEADRACE_DATABASE_URL", wrong_password(database.url))
    assert "password authentication failed" in said_at_the_end(start, capfd)
    environment.setenv("HEADRACE_DATABASE_URL", f"{database.url}_nowhere")
    assert '_nowhere" does not exist; correct the name' in said_at_the_end(start, capfd)
    environment.setenv("HEADRACE_DATABASE_URL", database.url)
    environment.setenv("HEADRACE_REDIS_URL", wrong_password(os.environ["HEADRACE_REDIS_URL"]))
    said = said_at_the_end(start, capfd)
    assert "Redis cannot be used" in said
    assert "correct the user and the password in HEADRACE_REDIS_URL" in said


@pytest.mark.parametrize("arguments", [*PROCESSES.values(), FLOWER], ids=[*PROCESSES, "Flower"])
def test_a_real_process_ends_with_one_line_and_78(arguments: list[str]) -> None:
    settings = {"HEADRACE_DATABASE_URL": "postgres://127.0.0.1:9/db", "HEADRACE_REDIS_URL": "sentinel://h/0"}
    code, said = end_of(arguments, settings)
    assert code == os.EX_CONFIG, said
    assert "headrace: HEADRACE_REDIS_URL: sentinel:// is not supported" in said


def test_a_worker_whose_password_is_wrong_ends_with_one_line_and_78(database: Database, valkey: EmbeddedValkey) -> None:
    settings = {"HEADRACE_DATABASE_URL": wrong_password(database.url), "HEADRACE_REDIS_URL": valkey.url}
    code, said = end_of(PROCESSES["worker"], settings)
    assert code == os.EX_CONFIG, said
    assert "headrace: Postgres cannot be used: password authentication failed" in said


def test_stores_that_are_away_are_waited_for() -> None:
    require_session("postgresql+psycopg://127.0.0.1:9/db")
    require_redis("redis://127.0.0.1:9/0")


@pytest.mark.parametrize("name", ["LEASE_S", "DRAIN_S", "MODEL_MEMORY_MB", "GPU_REQUIRED"])
def test_a_value_that_is_not_a_number_is_named_and_an_empty_one_is_the_default(
    name: str, environment: pytest.MonkeyPatch
) -> None:
    usual = getattr(read_settings(WorkerSettings), name.lower())
    environment.setenv(f"HEADRACE_{name}", "soon")
    with pytest.raises(ConfigurationError, match=rf"^HEADRACE_{name}: Input should be a valid \w+"):
        read_settings(WorkerSettings)
    for empty in ("", "  "):
        environment.setenv(f"HEADRACE_{name}", empty)
        assert getattr(read_settings(WorkerSettings), name.lower()) == usual


def test_line_ends_of_windows_are_not_part_of_a_setting(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("HEADRACE_LEASE_S", "7\r")
    environment.setenv("HEADRACE_CATALOG", f"{tmp_path}/c.toml\r")
    environment.setenv("HEADRACE_OPTIONAL_LLMS", "a, b\r")
    settings = read_settings(WorkSettings)
    assert (settings.lease_s, settings.catalog, settings.optional_llms) == (7, tmp_path / "c.toml", ("a", "b"))


def test_a_broker_of_its_own_is_redis_or_rabbitmq(environment: pytest.MonkeyPatch) -> None:
    for given, broker in (("amqp://u:p@h//", "amqp://u:p@h//"), ("valkey://h", "redis://h/0")):
        environment.setenv("HEADRACE_BROKER_URL", given)
        assert read_settings(WorkSettings).broker == broker
    environment.setenv("HEADRACE_BROKER_URL", "kafka://h")
    with pytest.raises(ConfigurationError, match="HEADRACE_BROKER_URL: kafka:// is not a URL of Redis"):
        read_settings(WorkSettings)


def test_the_first_of_several_hosts_that_serves_is_used(database: Database) -> None:
    several = database.url.replace("@127.0.0.1:", "@127.0.0.1:9,127.0.0.1:", 1)
    require_database(postgres_url(several + "?target_session_attrs=read-write"))


def test_the_options_of_a_url_stay_beside_the_sessions_limits(database: Database) -> None:
    url = postgres_url(f"{database.url}?options=-csearch_path%3Dother&connect_timeout=2")
    require_session(url)
    arguments = connect_arguments(url, SESSION, {"connect_timeout": 5, "keepalives_idle": 10})
    assert arguments["options"].startswith("-csearch_path=other -c statement_timeout=30s")  # type: ignore[attr-defined]
    assert "connect_timeout" not in arguments
    assert arguments["keepalives_idle"] == 10


@contextmanager
def tls_before(server: EmbeddedValkey, context: ssl.SSLContext) -> Iterator[int]:
    """The port of a server that speaks TLS and passes on what it hears."""
    with create_server(("127.0.0.1", 0)) as listener:

        def pass_on(client: socket) -> None:
            try:
                with (
                    context.wrap_socket(client, server_side=True) as inside,
                    create_connection(("127.0.0.1", server.port)) as outside,
                ):
                    threading.Thread(target=copy, args=(outside, inside), daemon=True).start()
                    copy(inside, outside)
            except OSError:
                return

        def copy(source: socket, target: socket) -> None:
            try:
                while data := source.recv(65536):
                    target.sendall(data)
            except OSError:
                return

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=pass_on, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]


def test_certificates_of_redis_are_verified_by_both_libraries(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with tls_before(valkey, context) as port:
        plain = valkey.url.replace(f":{valkey.port}/", f":{port}/")
        unverified = redis_url(plain.replace("redis://", "rediss://"))
        with pytest.raises(ConfigurationError, match=r"certificate verify failed.*correct the scheme"):
            require_redis(unverified)
        with Connection(unverified) as broker, pytest.raises(OperationalError, match="certificate verify failed"):
            broker.ensure_connection(max_retries=0)
        for parameters in (f"ssl_ca_certs={tmp_path}/ca.pem", "ssl_cert_reqs=none"):
            verified = redis_url(f"{plain.replace('redis://', 'rediss://')}?{parameters}")
            require_redis(verified)
            with Connection(verified) as broker:
                broker.ensure_connection(max_retries=0)


def test_a_database_that_redis_does_not_have_is_named(valkey: EmbeddedValkey) -> None:
    with pytest.raises(ConfigurationError, match="correct the number of the database"):
        require_redis(valkey.url.replace("/0", "/4711"))
