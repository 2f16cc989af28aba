"""The URLs of Postgres and Redis in the one form that every library here understands.

People copy these URLs from a provider's page, from another program's settings or from a secret. SQLAlchemy, libpq,
redis-py and kombu each read a different subset. This module reads a URL by the forms below, and writes it again.
A password may have any characters, percent-encoded or not. A URL that cannot be read raises ValueError with one
sentence, which never contains a password.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlencode

POSTGRES_SCHEMES = frozenset({"postgresql", "postgres", "postgresql+psycopg", "postgres+psycopg"})
"""All of them use psycopg 3."""

REDIS_SCHEMES: Mapping[str, str] = {"redis": "redis", "valkey": "redis", "rediss": "rediss", "valkeys": "rediss"}
"""The scheme that is written for each scheme that may be given."""

_POSTGRES_FORM = "postgresql://user:password@host:port/name"
_REDIS_FORM = "redis://:password@host:port/0"

POSTGRES_PARAMETERS = frozenset(
    {
        "application_name",
        "channel_binding",
        "client_encoding",
        "connect_timeout",
        "dbname",
        "fallback_application_name",
        "gssdelegation",
        "gssencmode",
        "gsslib",
        "host",
        "hostaddr",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "krbsrvname",
        "load_balance_hosts",
        "max_protocol_version",
        "min_protocol_version",
        "oauth_client_id",
        "oauth_client_secret",
        "oauth_issuer",
        "oauth_scope",
        "options",
        "passfile",
        "password",
        "port",
        "replication",
        "require_auth",
        "requirepeer",
        "scram_client_key",
        "scram_server_key",
        "service",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
        "sslcert",
        "sslcertmode",
        "sslcompression",
        "sslcrl",
        "sslcrldir",
        "sslkey",
        "sslkeylogfile",
        "sslmode",
        "sslnegotiation",
        "sslpassword",
        "sslrootcert",
        "sslsni",
        "target_session_attrs",
        "tcp_user_timeout",
        "user",
    }
)
"""The connection parameters of libpq 18. The module stays free of psycopg, which could list them; a test compares."""

REDIS_PARAMETERS = frozenset(
    {"db", "ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname", "ssl_keyfile"}
)
"""The parameters that both redis-py and kombu read, and read alike."""

_VALUES: Mapping[str, frozenset[str]] = {
    "sslmode": frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}),
    "channel_binding": frozenset({"disable", "prefer", "require"}),
    "target_session_attrs": frozenset({"any", "read-write", "read-only", "primary", "standby", "prefer-standby"}),
    "ssl_cert_reqs": frozenset({"none", "optional", "required", "CERT_NONE", "CERT_OPTIONAL", "CERT_REQUIRED"}),
    "ssl_check_hostname": frozenset({"true", "false"}),
}
"""The values of parameters that are checked before a connection is tried."""

_INSTEAD = {
    "ssl": "write sslmode=require, or sslmode=verify-full with sslrootcert",
    "pgbouncer": "leave it out, and name Postgres itself: Headrace needs direct connections",
    "schema": "leave it out; options=-csearch_path%3Dname chooses a schema",
}
"""What to write for parameters of other drivers."""

_HOST = r"(?:\[[0-9a-fA-F:.%\w]+\]|[^\s\[\]@:/?#,\\]*)(?::\d{1,5})?"
_PLACE = re.compile(rf"(?P<hosts>{_HOST}(?:,{_HOST})*)(?:/(?P<path>[^?#]*))?(?:\?(?P<query>[^#]*))?")
_HOST_AND_PORT = re.compile(r"(?P<host>\[.*\]|[^:]*)(?::(?P<port>\d+))?")


@dataclass(frozen=True, slots=True)
class _Url:
    """A URL in its parts. Only ``hosts`` may be percent-encoded."""

    scheme: str
    user: str | None
    password: str | None
    hosts: tuple[str, ...]
    path: str
    parameters: Mapping[str, str]


def postgres_url(given: str) -> str:
    """A URL of Postgres as SQLAlchemy with psycopg reads it. Raises ValueError.

    The forms are those of libpq (section 32.1.1 of PostgreSQL's manual): several hosts, ``host`` as a parameter or
    percent-encoded in its place for a socket's directory, any of libpq's parameters.
    """
    url = _read(given, _POSTGRES_FORM, POSTGRES_PARAMETERS)
    driver = url.scheme.partition("+")[2]
    if url.scheme not in POSTGRES_SCHEMES:
        if driver and url.scheme.startswith("postgres"):
            raise ValueError(f"the driver {driver} is not used here; write postgresql:// in place of {url.scheme}://")
        raise ValueError(f"{url.scheme}:// is not a URL of Postgres; expected {_POSTGRES_FORM}")
    _check_parameters(url.parameters, POSTGRES_PARAMETERS)
    name = url.path or url.parameters.get("dbname", "")
    if "?" in name or "#" in name:
        raise ValueError("the database's name has a character that a URL cannot have")
    rest = {key: value for key, value in url.parameters.items() if key != "dbname"}
    one, places = _postgres_place(url.hosts)
    # The name stays as it is: SQLAlchemy does not decode it.
    return f"postgresql+psycopg://{_userinfo(url)}{one}/{name}{_query([*places.items(), *rest.items()])}"


def redis_url(given: str) -> str:
    """A URL of a Redis-protocol server as redis-py and kombu read it, with the database's number. Raises ValueError.

    Certificates are verified unless ``ssl_cert_reqs`` says otherwise: redis-py's default, and not kombu's.
    """
    url = _read(given, _REDIS_FORM, REDIS_PARAMETERS)
    if "sentinel" in url.scheme or "cluster" in url.scheme:
        raise ValueError(f"{url.scheme}:// is not supported: Headrace needs the address of one server, {_REDIS_FORM}")
    if url.scheme in ("unix", "redis+socket"):
        raise ValueError(f"sockets are not supported for Redis; expected {_REDIS_FORM}")
    scheme = REDIS_SCHEMES.get(url.scheme)
    if scheme is None:
        raise ValueError(f"{url.scheme}:// is not a URL of Redis; expected {_REDIS_FORM}")
    if len(url.hosts) != 1:
        raise ValueError(f"Headrace needs one Redis server, and not {len(url.hosts)}; expected {_REDIS_FORM}")
    _check_parameters(url.parameters, REDIS_PARAMETERS)
    number = url.parameters.get("db") or url.path or "0"
    if not number.isascii() or not number.isdigit():
        raise ValueError(f"the database of Redis is a number, and not {number!r}; expected {_REDIS_FORM}")
    tls = {key: value for key, value in url.parameters.items() if key != "db"}
    if tls and scheme == "redis":
        raise ValueError(f"{min(tls)} needs TLS: write rediss:// in place of {url.scheme}://")
    if scheme == "rediss":
        tls["ssl_cert_reqs"] = tls.get("ssl_cert_reqs", "required").removeprefix("CERT_").lower()
    return f"{scheme}://{_userinfo(url)}{url.hosts[0] or 'localhost'}/{number}{_query(tls.items(), safe='/')}"


def _read(given: str, form: str, known: Collection[str]) -> _Url:
    text = given.strip().removeprefix("\ufeff")
    if not text:
        raise ValueError(f"it is empty; expected {form}")
    if text[0] in "\"'`":
        raise ValueError(f"it begins with a quotation mark, which some env files keep; expected {form}")
    scheme, separator, rest = text.removeprefix("jdbc:").partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise ValueError(f"it is not a URL; expected {form}")
    userinfo, place = _split(rest, form, known)
    user, colon, password = userinfo.partition(":")
    return _Url(
        scheme.lower(),
        unquote(user) if user else None,
        unquote(password) if colon else None,
        tuple(place["hosts"].split(",")),
        unquote(place["path"] or "").rstrip("/"),
        dict(_pairs(place["query"] or "")),
    )


def _split(rest: str, form: str, known: Collection[str]) -> tuple[str, "re.Match[str]"]:
    """The user's part, and hosts, path and query. The last @ before something that reads as hosts divides them, so
    that a password may have any character as it is. An @ within the parameters divides nothing."""
    place = _PLACE.fullmatch(rest)
    if place is not None and ("@" not in rest or (place["query"] or "").partition("=")[0] in known):
        return "", place
    end = len(rest)
    while (end := rest.rfind("@", 0, end)) != -1:
        place = _PLACE.fullmatch(rest, end + 1)
        if place is not None:
            return rest[:end], place
    raise ValueError(
        f"it cannot be read: expected {form}, with the special characters of user and password percent-encoded"
        " (@ is %40, / is %2F, # is %23)"
    )


def _pairs(query: str) -> Iterator[tuple[str, str]]:
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        yield unquote(name), unquote(value)


def _check_parameters(given: Mapping[str, str], known: Collection[str]) -> None:
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"there is no parameter {name!r} here; {_INSTEAD.get(name, 'leave it out')}")
        values = _VALUES.get(name)
        if values is not None and value not in values:
            raise ValueError(f"{name}={value} is not known; expected one of {', '.join(sorted(values))}")


def _postgres_place(hosts: Sequence[str]) -> tuple[str, Mapping[str, str]]:
    """One host as it stands in the URL, or several hosts or the directory of a socket as parameters."""
    if len(hosts) == 1 and not unquote(hosts[0]).startswith(("/", "@")):
        return hosts[0], {}
    parted = [_HOST_AND_PORT.fullmatch(host) for host in hosts]
    names = ",".join(unquote(part["host"]).strip("[]") for part in parted if part is not None)
    ports = ",".join(part["port"] or "5432" for part in parted if part is not None)
    return "", {"host": names, "port": ports}


def _query(parameters: Iterable[tuple[str, str]], safe: str = "") -> str:
    query = urlencode([*parameters], quote_via=quote, safe=safe)
    return f"?{query}" if query else ""


def _userinfo(url: _Url) -> str:
    user = quote(url.user or "", safe="")
    if url.password is None:
        return f"{user}@" if user else ""
    return f"{user}:{quote(url.password, safe='')}@"
