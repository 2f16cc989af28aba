"""The refusal of a Redis-protocol server that cannot be used until a person changes a setting."""

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry

from models.errors import ConfigurationError

_TIMEOUT_S = 5.0
_PASSWORD = "correct the user and the password"


def require_redis(url: str) -> None:
    """Raise ConfigurationError when the server at ``url``, which is HEADRACE_REDIS_URL, refuses for good: a wrong
    password, a database that it does not have, a certificate that cannot be verified, or a server that is not Redis.

    A server that cannot be reached now raises nothing: the process waits for it.
    """
    once = Retry(NoBackoff(), 0)
    timeouts = {"socket_timeout": _TIMEOUT_S, "socket_connect_timeout": _TIMEOUT_S}
    with redis.Redis.from_url(url, retry=once, **timeouts) as client:
        try:
            client.ping()
        except redis.RedisError as error:
            advice = _advice(error)
            if advice is not None:
                raise ConfigurationError(f"Redis cannot be used: {error}; {advice} in HEADRACE_REDIS_URL") from None
        except UnicodeDecodeError:
            raise ConfigurationError("what answers is not Redis; correct the address in HEADRACE_REDIS_URL") from None


def _advice(error: redis.RedisError) -> str | None:
    said = str(error).lower()
    if isinstance(error, redis.AuthenticationError | NoPermissionError) or "auth" in said:
        return _PASSWORD
    if "certificate" in said or "wrong version number" in said or "record layer failure" in said:
        return "correct the scheme (redis:// or rediss://) and the certificates"
    if isinstance(error, redis.InvalidResponse):
        return "correct the address"
    if "db index" in said or "not allowed in cluster mode" in said:
        return "correct the number of the database"
    return None
