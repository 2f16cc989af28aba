"""The text of running jobs for those who stream it: one subscription per API process."""

import asyncio
import secrets
from dataclasses import dataclass, field
from uuid import UUID

from models.texts import Piece, listen


@dataclass(slots=True, eq=False)
class Feed:
    """What has come of one job's answer and was not taken yet.

    ``broken``: another attempt began after text of an earlier one was taken, so what was given out is not the
    answer's beginning.
    """

    job: str
    came: asyncio.Event = field(default_factory=asyncio.Event)
    llm: str | None = None
    broken: bool = False
    _attempt: str | None = None
    _taken: int = 0
    _ready: list[str] = field(default_factory=list)
    _length: int = 0

    def add(self, piece: Piece) -> None:
        """Note a piece; after one that was lost, what follows is left to the answer as a whole."""
        if piece.attempt != self._attempt:
            self.broken = self.broken or self._taken > 0
            self._attempt, self.llm, self._ready, self._length = piece.attempt, piece.llm, [], 0
        if piece.at == self._length and not self.broken:
            self._ready.append(piece.text)
            self._length += len(piece.text)
        self.came.set()

    def take(self) -> str:
        """The text that is next."""
        self.came.clear()
        text, self._ready = "".join(self._ready), []
        self._taken += len(text)
        return text


class TextFeeds:
    """Gives the pieces that come to those who wait for them."""

    def __init__(self, redis_url: str) -> None:
        self.channel = f"headrace:text:{secrets.token_hex(8)}"
        self._redis_url = redis_url
        self._feeds: dict[str, set[Feed]] = {}

    def open(self, job_id: UUID) -> Feed:
        """A job's feed, to open before the job can run, and to close in the end."""
        feed = Feed(job_id.hex)
        self._feeds.setdefault(feed.job, set()).add(feed)
        return feed

    def close(self, feed: Feed) -> None:
        """Take nothing more for a feed."""
        self._feeds[feed.job].discard(feed)
        if not self._feeds[feed.job]:
            del self._feeds[feed.job]

    async def listen(self) -> None:
        """Take what comes, for ever."""
        async for piece in listen(self._redis_url, self.channel):
            for feed in self._feeds.get(piece.job, ()):
                feed.add(piece)
