"""Text on its way from a worker to an API process that streams it, over Redis pub/sub.

Only jobs whose stored request names a channel (``stream``) send any. A piece says where in the answer it begins, so
whoever reads them sees when one was lost, and the whole answer is in Postgres when the job has ended.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass

import orjson
import redis.asyncio as redis
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

TICK_S = 0.03
"""Text of one job that comes within this time travels together."""

_TIMEOUT_S = 2.0
_RECONNECT_S = 0.5

log = structlog.get_logger()


@dataclass(slots=True)
class Piece:
    """A piece of an attempt's answer; ``at`` counts the characters before it."""

    job: str
    attempt: str
    llm: str
    at: int
    text: str


class TextSender:
    """Sends pieces in the background; a lost one costs its reader the rest of the stream until the job ends."""

    def __init__(self, redis_url: str) -> None:
        self._client = redis.Redis.from_url(
            redis_url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, retry=Retry(NoBackoff(), 1)
        )
        self._pending: dict[tuple[str, str], Piece] = {}
        self._sender: asyncio.Task[None] | None = None

    def writer(self, channel: str, job: str, attempt: str, llm: str) -> Callable[[str], None]:
        """What takes an attempt's text, piece by piece, on the event loop's thread."""
        at = 0

        def write(text: str) -> None:
            nonlocal at
            piece = self._pending.get((channel, attempt))
            if piece is None:
                self._pending[channel, attempt] = Piece(job, attempt, llm, at, text)
            else:
                piece.text += text
            at += len(text)
            if self._sender is None:
                self._sender = asyncio.create_task(self._send_pending())

        return write

    async def close(self) -> None:
        """Send what waits and close the connection."""
        if self._sender is not None:
            await self._sender
        with contextlib.suppress(RedisError, OSError):
            await self._client.aclose()

    async def _send_pending(self) -> None:
        try:
            while self._pending:
                await asyncio.sleep(TICK_S)
                batch, self._pending = self._pending, {}
                messages: dict[str, list[Piece]] = {}
                for (channel, _), piece in batch.items():
                    messages.setdefault(channel, []).append(piece)
                try:
                    async with self._client.pipeline(transaction=False) as pipe:
                        for channel, pieces in messages.items():
                            pipe.publish(channel, orjson.dumps([asdict(piece) for piece in pieces]))
                        await pipe.execute()
                except (RedisError, OSError) as error:
                    log.warning("texts.lost", error=str(error))
        finally:
            self._sender = None


async def listen(redis_url: str, channel: str) -> AsyncIterator[Piece]:
    """The pieces of a channel as they come, for ever; reconnects by itself."""
    while True:
        client = redis.Redis.from_url(
            redis_url, socket_connect_timeout=_TIMEOUT_S, socket_keepalive=True, retry=Retry(NoBackoff(), 1)
        )
        try:
            async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
                await pubsub.subscribe(channel)
                async for message in pubsub.listen():
                    for piece in orjson.loads(message["data"]):
                        yield Piece(**piece)
        except (RedisError, OSError) as error:
            log.warning("texts.disconnected", error=str(error))
        finally:
            with contextlib.suppress(RedisError, OSError):
                await client.aclose()
        await asyncio.sleep(_RECONNECT_S)
