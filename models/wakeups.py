"""Wake-ups between processes, over Redis pub/sub: hints, never facts.

A lost wake-up costs the next poll's delay and nothing else, so nothing here raises, retries or
makes its caller wait.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

import redis.asyncio as redis
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

DUE = "headrace:due"
"""Some job became due, or more may run at a time."""

ROOM = "headrace:room"
"""Jobs ended: places in a queue's window became free."""

FINISHED = "headrace:finished"
"""Jobs reached a terminal state; the message carries their ids in hex, separated by spaces."""

CANCEL = "headrace:cancel"
"""Cancellation of running jobs was asked for; the message is as that of FINISHED."""

_TIMEOUT_S = 2.0
_RECONNECT_S = 0.5

log = structlog.get_logger()


class Wakeups:
    """Sends and receives wake-ups; messages to one channel that wait together are sent as one."""

    def __init__(self, redis_url: str) -> None:
        self._url = redis_url
        self._client = self._connect(_TIMEOUT_S)
        self._pending: dict[str, set[str]] = {}
        self._sender: asyncio.Task[None] | None = None

    def announce(self, channel: str, ids: Iterable[str] = ()) -> None:
        """Send a wake-up in the background."""
        self._pending.setdefault(channel, set()).update(ids)
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_pending())

    async def listen(self, *channels: str) -> AsyncIterator[tuple[str, list[str]]]:
        """Wake-ups as they come, as (channel, ids), for ever; reconnects by itself."""
        while True:
            client = self._connect(None)
            try:
                async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
                    await pubsub.subscribe(*channels)
                    async for message in pubsub.listen():
                        yield message["channel"].decode(), message["data"].decode().split()
            except (RedisError, OSError) as error:
                log.warning("wakeups.disconnected", error=str(error))
            finally:
                with contextlib.suppress(RedisError, OSError):
                    await client.aclose()
            await asyncio.sleep(_RECONNECT_S)

    async def close(self) -> None:
        """Send what waits and close the connections."""
        if self._sender is not None:
            await self._sender
        with contextlib.suppress(RedisError, OSError):
            await self._client.aclose()

    async def is_reachable(self) -> bool:
        """Whether the server answers a PING in time."""
        try:
            return bool(await self._client.ping())
        except (RedisError, OSError):
            return False

    def _connect(self, socket_timeout: float | None) -> redis.Redis:
        return redis.Redis.from_url(
            self._url,
            socket_timeout=socket_timeout,
            socket_connect_timeout=_TIMEOUT_S,
            socket_keepalive=True,
            health_check_interval=0,
            retry=Retry(NoBackoff(), 1),
        )

    async def _send_pending(self) -> None:
        try:
            while self._pending:
                batch, self._pending = self._pending, {}
                try:
                    async with self._client.pipeline(transaction=False) as pipe:
                        for channel, ids in batch.items():
                            pipe.publish(channel, " ".join(sorted(ids)))
                        await pipe.execute()
                except (RedisError, OSError) as error:
                    log.warning("wakeups.lost", error=str(error))
        finally:
            self._sender = None
