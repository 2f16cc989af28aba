"""Small facts that processes share through Redis, each changed by one atomic script.

They hasten and spare, and Postgres is the truth: when Redis is away its callers decide by themselves. Calls that
coincide travel in one pipeline.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from models.grouping import GroupCommit

_TIMEOUT_S = 1.0

Call = tuple[str, str, tuple[str | int | float, ...]]
Reply = Any  # Any: what a script returns


class SharedAway(Exception):
    """Redis did not answer in time; whether the script ran is unknown."""


class Shared:
    """Runs scripts of one key each; used from one event loop."""

    def __init__(self, redis_url: str, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._client = redis.Redis.from_url(
            redis_url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            socket_keepalive=True,
            health_check_interval=0,
            retry=Retry(NoBackoff(), 1),
        )
        self._calls: GroupCommit[Call, Reply] = GroupCommit(
            self._flush, shared_fate=lambda error: isinstance(error, SharedAway)
        )

    async def run(self, script: str, key: str, *arguments: str | int | float) -> Reply:
        """Run a script on a key and return its reply; raises SharedAway.

        A call whose caller is cancelled runs all the same, and calls run in the order they were made.
        """
        return await self._calls.submit((script, key, arguments))

    async def close(self) -> None:
        """Close the connections, after the calls that are under way."""
        await self._calls.idle()
        with contextlib.suppress(RedisError, OSError):
            await self._client.aclose()

    async def _flush(self, calls: Sequence[Call]) -> Sequence[Reply]:
        try:
            async with self._client.pipeline(transaction=False) as pipe:
                for script, key, arguments in calls:
                    pipe.eval(script, 1, key, *arguments)
                return await pipe.execute()
        except (RedisError, OSError) as error:
            raise SharedAway(str(error)) from error
