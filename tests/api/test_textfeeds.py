"""Text on its way to those who stream it: what is lost is left to the end, what is begun anew is noticed."""

import asyncio
import json
from datetime import UTC, datetime

import pytest

from api.chat import Events
from api.jobview import Row
from api.local.valkey import EmbeddedValkey
from api.textfeeds import Feed, TextFeeds
from models.ids import new_id
from models.texts import Piece, TextSender

pytestmark = pytest.mark.anyio


def piece(at: int, text: str, attempt: str = "first") -> Piece:
    return Piece("job", attempt, "echo", at, text)


def completed(text: str) -> Row:
    result = {"text": text, "finish_reason": "stop", "model": "echo"}
    return {
        "id": new_id(),
        "created_at": datetime.now(UTC),
        "status": "completed",
        "result": result,
        "error": None,
        "input_tokens": 1,
        "output_tokens": 2,
    }


def said(events: bytes) -> list[str]:
    """The texts and errors of some events."""
    found = []
    for event in events.decode().split("\n\n"):
        if event and event != "data: [DONE]":
            document = json.loads(event.removeprefix("data: "))
            found += ["error"] if "error" in document else []
            found += [choice["delta"].get("content", "") for choice in document.get("choices", ())]
    return [text for text in found if text]


async def test_pieces_come_out_in_order_and_once() -> None:
    feed = Feed("job")
    for at, text in ((0, "one "), (4, "two ")):
        feed.add(piece(at, text))
    assert (feed.take(), feed.take(), feed.llm) == ("one two ", "", "echo")
    feed.add(piece(8, "three"))
    assert (feed.take(), feed.broken) == ("three", False)


async def test_what_follows_a_lost_piece_waits_for_the_whole_answer() -> None:
    feed, row = Feed("job"), completed("one two three")
    events = Events(row, include_usage=False)
    feed.add(piece(0, "one "))
    sent = said(events.text(feed.take(), feed.llm))
    feed.add(piece(8, "three"))
    assert feed.take() == ""
    assert not feed.broken
    assert sent + said(events.end(row)) == ["one ", "two three"]


async def test_an_attempt_that_follows_one_nobody_has_read_of_is_read_from_its_beginning() -> None:
    feed = Feed("job")
    feed.add(piece(0, "lost"))
    feed.add(piece(0, "found", "second"))
    assert (feed.take(), feed.broken) == ("found", False)


async def test_an_attempt_that_follows_one_that_was_read_breaks_the_stream() -> None:
    feed = Feed("job")
    feed.add(piece(0, "one"))
    assert feed.take() == "one"
    feed.add(piece(0, "one", "second"))
    assert (feed.take(), feed.broken) == ("", True)


async def test_an_answer_that_does_not_begin_as_was_sent_is_an_error() -> None:
    row = completed("another answer")
    events = Events(row, include_usage=False)
    assert said(events.text("an answer", "echo") + events.end(row)) == ["an answer", "error"]


async def test_text_travels_from_a_worker_to_whoever_asked_for_it(valkey: EmbeddedValkey) -> None:
    feeds, other, job_id = TextFeeds(valkey.url), TextFeeds(valkey.url), new_id()
    feed, others, warm_up = feeds.open(job_id), other.open(job_id), feeds.open(new_id())
    listening = [asyncio.create_task(each.listen()) for each in (feeds, other)]
    sender = TextSender(valkey.url)
    try:
        async with asyncio.timeout(10):
            while warm_up.llm is None:  # until the subscription is there
                sender.writer(feeds.channel, warm_up.job, "warm-up", "echo")("?")
                await asyncio.sleep(0.1)
        write = sender.writer(feeds.channel, job_id.hex, "attempt", "echo")
        for word in ("one ", "twö ", "three"):
            write(word)
        got = ""
        async with asyncio.timeout(10):
            while got != "one twö three":
                await feed.came.wait()
                got += feed.take()
        assert others.llm is None
    finally:
        await sender.close()
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
        feeds.close(feed)
        feeds.close(warm_up)
