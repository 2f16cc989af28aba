"""Children: questions that may hurt are asked of processes that may be lost, in an order that is fair to tenants."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from workers import children
from workers.children import Cause, ChildFailed, Children

MODULE = "tests.workers.echo_child"


def run(story: Callable[[Children], Awaitable[None]], number: int = 1, max_line: int = 1000) -> None:
    async def main() -> None:
        pool = Children(MODULE, number=number, max_line=max_line)
        try:
            await story(pool)
        finally:
            await pool.close()

    asyncio.run(main())


async def cause_of(asking: Awaitable[bytes]) -> Cause:
    with pytest.raises(ChildFailed) as caught:
        await asking
    return caught.value.cause


def test_a_question_is_answered_by_a_child_that_stays(tmp_path: Path) -> None:
    async def story(pool: Children) -> None:
        for _ in range(3):
            await pool.ask("a", f"log {tmp_path / 'pids'}".encode(), timeout_s=5)

    run(story)
    assert len(set((tmp_path / "pids").read_text().splitlines())) == 1


@pytest.mark.parametrize(
    ("question", "cause"),
    [(b"crash", Cause.DEATH), (b"loop", Cause.TIME), (b"sleep 60", Cause.TIME), (b"long 5000", Cause.DEATH)],
)
def test_only_the_question_that_ends_a_child_fails(
    question: bytes, cause: Cause, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "PATIENCE", 4)

    async def story(pool: Children) -> None:
        harm = asyncio.create_task(cause_of(pool.ask("a", question, timeout_s=0.3)))
        fine = [pool.ask("a", b"%d" % number, timeout_s=5) for number in range(3)]
        assert await asyncio.gather(*fine) == [b"0", b"1", b"2"]
        assert await harm is cause

    run(story)


def test_another_tenants_question_is_next_however_many_wait() -> None:
    async def story(pool: Children) -> None:
        order: list[str] = []
        first = asyncio.Event()

        async def ask(tenant: str, question: bytes) -> None:
            with contextlib.suppress(ChildFailed):
                await pool.ask(tenant, question, timeout_s=0.1)
            order.append(tenant)
            first.set()

        hostile = [asyncio.create_task(ask("a", b"loop")) for _ in range(60)]
        await first.wait()
        await ask("b", b"honest")
        assert order.count("a") <= 2  # the one before, and at most the one that a child had when b came
        for task in hostile:
            task.cancel()

    run(story)


def test_a_cancelled_question_leaves_its_answer_to_nobody_else() -> None:
    async def story(pool: Children) -> None:
        await pool.ask("a", b"first", timeout_s=5)
        asking = [asyncio.create_task(pool.ask("a", b"sleep 0.2", timeout_s=5)) for _ in range(3)]
        await asyncio.sleep(0.05)
        for task in asking:
            task.cancel()
        assert await pool.ask("b", b"mine", timeout_s=5) == b"mine"
        assert all(task.cancelled() for task in asking)

    run(story)


def test_a_child_that_cannot_start_fails_its_question_and_says_that_it_was_not_looked_at() -> None:
    async def main() -> None:
        pool = Children("tests.workers.missing", number=2)
        causes = await asyncio.gather(*(cause_of(pool.ask("a", b"x", timeout_s=5)) for _ in range(3)))
        assert causes == [Cause.START] * 3
        await pool.close()

    asyncio.run(main())


def test_what_waits_when_the_children_are_closed_fails() -> None:
    async def main() -> None:
        pool = Children(MODULE, number=1)
        asking = [asyncio.create_task(cause_of(pool.ask("a", b"sleep 60", timeout_s=60))) for _ in range(2)]
        await asyncio.sleep(0.5)
        await pool.close()
        assert await asyncio.gather(*asking) == [Cause.DEATH] * 2

    asyncio.run(main())


def test_a_question_is_one_line() -> None:
    async def story(pool: Children) -> None:
        with pytest.raises(ValueError, match="one line"):
            await pool.ask("a", b"two\nlines", timeout_s=5)

    run(story)
