"""URLs of Postgres and Redis as people have them; each is taken, or refused with one sentence."""

import pytest
import redis
from kombu import Connection
from psycopg import pq
from sqlalchemy import create_engine, make_url

from models.urls import POSTGRES_PARAMETERS, REDIS_PARAMETERS, postgres_url, redis_url

USER = {"host": "h", "user": "u", "password": "p", "dbname": "db"}
POSTGRES = {
    "Heroku's (simonw/db-to-sqlite#34, apache/airflow#24569)": ("postgres://u:p@h:5432/db", USER | {"port": 5432}),
    "the manual's": ("postgresql://u@h/db", {"host": "h", "user": "u", "dbname": "db"}),
    "with the driver": ("postgresql+psycopg://u:p@h/db", USER),
    "JDBC's": ("jdbc:postgresql://h:1/db?user=u", {"host": "h", "port": 1, "user": "u", "dbname": "db"}),
    "a line end from a secret's file": ("postgres://u:p@h/db\r\n", USER),
    "a password as it is": ("postgresql://u:p@ss/w#rd?%+@h/db", USER | {"password": "p@ss/w#rd?%+"}),
    "a password encoded (sqlalchemy/alembic#1279, cgwire/zou#1061)": (
        "postgresql://u:p%40ss%2Fw%23rd%3F%25%3D@h/db",
        USER | {"password": "p@ss/w#rd?%="},
    ),
    "a password like parameters": ("postgresql://u:12?x=y@h/db", USER | {"password": "12?x=y"}),
    "Azure's user": ("postgresql://u@server:p@h/db", USER | {"user": "u@server"}),
    "an @ in a parameter": ("postgresql://h/db?user=u@server", {"host": "h", "user": "u@server", "dbname": "db"}),
    "TLS": (
        "postgres://u:p@h/db?sslmode=verify-full&sslrootcert=/etc/ca%20s.pem",
        USER | {"sslmode": "verify-full", "sslrootcert": "/etc/ca s.pem"},
    ),
    "Neon's": (
        "postgresql://u:p@ep-1.neon.tech/db?sslmode=require&channel_binding=require",
        USER | {"host": "ep-1.neon.tech", "sslmode": "require", "channel_binding": "require"},
    ),
    "several hosts": (
        "postgresql://u:p@h1:1,h2/db?target_session_attrs=read-write",
        USER | {"host": "h1,h2", "port": "1,5432", "target_session_attrs": "read-write"},
    ),
    "IPv6": ("postgresql://u@[::1]:5/db", {"host": "::1", "port": 5, "user": "u", "dbname": "db"}),
    "several of IPv6": ("postgresql://[::1]:5,[::2]/db", {"host": "::1,::2", "port": "5,5432", "dbname": "db"}),
    "a socket as a parameter": ("postgresql:///db?host=/run/pg", {"host": "/run/pg", "dbname": "db"}),
    "a socket in its place": (
        "postgresql://u@%2Frun%2Fpg:5433/db",
        {"host": "/run/pg", "port": "5433", "user": "u", "dbname": "db"},
    ),
    "no name": ("postgresql://u@h", {"host": "h", "user": "u"}),
    "the name as a parameter": ("postgresql://u@h?dbname=db", {"host": "h", "user": "u", "dbname": "db"}),
    "a name with a space": ("postgresql://u@h/my%20db", {"host": "h", "user": "u", "dbname": "my db"}),
    "options": (
        "postgresql://h/db?options=-c%20search_path%3Da",
        {"host": "h", "dbname": "db", "options": "-c search_path=a"},
    ),
}

NOT_POSTGRES = {
    "nothing": ("  ", "it is empty"),
    "a word": ("nonsense", "it is not a URL"),
    "libpq's other form": ("host=h dbname=db", "it is not a URL"),
    "quotation marks, as Docker's env files keep them": ('"postgres://u:p@h/db"', "begins with a quotation mark"),
    "another database": ("mysql://u:p@h/db", "mysql:// is not a URL of Postgres"),
    "SQLite": ("sqlite:///x.db", "sqlite:// is not a URL of Postgres"),
    "HTTP": ("https://h/db", "https:// is not a URL of Postgres"),
    "asyncpg": ("postgresql+asyncpg://u:p@h/db", "the driver asyncpg is not used here; write postgresql://"),
    "psycopg2": ("postgresql+psycopg2://u:p@h/db", "the driver psycopg2 is not used here"),
    "a port that is not a number": ("postgresql://u:p@h:port/db", "it cannot be read"),
    "a placeholder": ("postgresql://u:p@<host>/db", None),
    "asyncpg's TLS": ("postgresql://u:p@h/db?ssl=require", "'ssl' here; write sslmode=require"),
    "Prisma's schema": ("postgresql://u:p@h/db?schema=public", "'schema' here; leave it out"),
    "Prisma's pooler": ("postgresql://u:p@h/db?pgbouncer=true", "'pgbouncer' here; .*direct connections"),
    "a parameter of nobody": ("postgresql://u:p@h/db?colour=red", "'colour' here; leave it out"),
    "Node's sslmode": ("postgresql://u:p@h/db?sslmode=no-verify", "sslmode=no-verify is not known; expected one of"),
    "a space": ("postgresql://u:p@h h/db", "it cannot be read"),
}

REDIS = {
    "a host": ("redis://h", {"host": "h", "db": 0}),
    "a number": ("redis://h:1/3", {"host": "h", "port": 1, "db": 3}),
    "a number as a parameter": ("redis://h?db=4", {"host": "h", "db": 4}),
    "a password as it is (celery/celery#7864, #3132)": (
        "redis://:p#a/b?c@d@h/0",
        {"host": "h", "password": "p#a/b?c@d", "db": 0},
    ),
    "a password encoded": ("redis://u:p%23%40@h/0", {"host": "h", "username": "u", "password": "p#@", "db": 0}),
    "Base64 (celery/celery#4265)": (
        "redis://:dsa8+9r/A=@h:1/14",
        {"host": "h", "port": 1, "password": "dsa8+9r/A=", "db": 14},
    ),
    "Valkey's": ("valkey://u:p@h", {"host": "h", "username": "u", "password": "p", "db": 0}),
    "IPv6": ("redis://[::1]:5/0", {"host": "::1", "port": 5, "db": 0}),
    "TLS, verified": ("rediss://h/0", {"host": "h", "db": 0, "ssl_cert_reqs": "required"}),
    "Valkey's TLS": ("valkeys://h/0", {"host": "h", "db": 0, "ssl_cert_reqs": "required"}),
    "Heroku's TLS": (
        "rediss://:p@h:2?ssl_cert_reqs=CERT_NONE",
        {"host": "h", "port": 2, "password": "p", "db": 0, "ssl_cert_reqs": "none"},
    ),
    "an authority of one's own": (
        "rediss://h/0?ssl_ca_certs=/etc/ca.pem",
        {"host": "h", "db": 0, "ssl_ca_certs": "/etc/ca.pem", "ssl_cert_reqs": "required"},
    ),
}

NOT_REDIS = {
    "no scheme": ("localhost:6379", "it is not a URL"),
    "a name for a number": ("redis://h/jobs", "is a number, and not 'jobs'"),
    "sentinel": ("redis+sentinel://h:26379/mymaster/0", "is not supported: Headrace needs the address of one server"),
    "several": ("redis://h1,h2/0", "needs one Redis server, and not 2"),
    "a socket": ("unix:///run/redis.sock", "sockets are not supported"),
    "TLS without its scheme": ("redis://h/0?ssl_cert_reqs=none", "ssl_cert_reqs needs TLS: write rediss://"),
    "Railway's": ("redis://h/0?family=0", "there is no parameter 'family' here"),
    "Postgres": ("postgres://h/0", "postgres:// is not a URL of Redis"),
    "a port that is not a number": ("redis://h:port/0", "it cannot be read"),
    "quotation marks": ("'redis://h'", "begins with a quotation mark"),
}


@pytest.mark.parametrize(("given", "meant"), POSTGRES.values(), ids=POSTGRES)
def test_a_url_of_postgres_reaches_psycopg_as_it_is_meant(given: str, meant: dict[str, object]) -> None:
    written = postgres_url(given)
    _, arguments = create_engine(written).dialect.create_connect_args(make_url(written))
    assert {name: value for name, value in arguments.items() if name != "context"} == meant
    assert make_url(written).drivername == "postgresql+psycopg"
    assert postgres_url(written) == written


@pytest.mark.parametrize(("given", "sentence"), NOT_POSTGRES.values(), ids=NOT_POSTGRES)
def test_a_value_that_is_not_a_url_of_postgres_is_refused_in_a_sentence(given: str, sentence: str | None) -> None:
    if sentence is None:  # it may be a host's name: the connection tells
        postgres_url(given)
        return
    with pytest.raises(ValueError, match=sentence) as caught:
        postgres_url(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("given", "meant"), REDIS.values(), ids=REDIS)
def test_a_url_of_redis_reaches_both_libraries_as_it_is_meant(given: str, meant: dict[str, object]) -> None:
    written = redis_url(given)
    assert redis_url(written) == written
    found = redis.Redis.from_url(written).connection_pool.connection_kwargs
    assert {name: found[name] for name in meant} == meant
    broker = Connection(written).info()
    assert (broker["hostname"], broker["password"], broker["userid"]) == (
        meant["host"],
        meant.get("password"),
        meant.get("username"),
    )
    assert int(broker["virtual_host"]) == meant["db"]
    verified = {"none": "CERT_NONE", "required": "CERT_REQUIRED", None: None}[meant.get("ssl_cert_reqs")]  # type: ignore[index]
    assert (broker["ssl"]["ssl_cert_reqs"].name if broker["ssl"] else None) == verified


@pytest.mark.parametrize(("given", "sentence"), NOT_REDIS.values(), ids=NOT_REDIS)
def test_a_value_that_is_not_a_url_of_redis_is_refused_in_a_sentence(given: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        redis_url(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [postgres_url, redis_url])
@pytest.mark.parametrize("place", ["h:port/0", "h h/0", "h/0?colour=red", "<h>:x/0"])
def test_no_sentence_repeats_a_password(read: object, place: str) -> None:
    assert callable(read)
    for scheme in ("postgres", "rediss"):
        with pytest.raises(ValueError, match=r".") as caught:
            read(f"{scheme}://user:s3cr@t@{place}")
        assert "s3cr" not in str(caught.value)


def test_every_parameter_of_libpq_is_taken() -> None:
    assert {option.keyword.decode() for option in pq.Conninfo.get_defaults()} <= POSTGRES_PARAMETERS


def test_every_parameter_of_redis_is_one_of_both_libraries() -> None:
    for name in REDIS_PARAMETERS - {"db"}:
        value = {"ssl_cert_reqs": "none", "ssl_check_hostname": "false"}.get(name, "x")
        url = redis_url(f"rediss://h/0?{name}={value}")
        assert name in redis.Redis.from_url(url).connection_pool.connection_kwargs
        assert name in Connection(url).info()["ssl"]
