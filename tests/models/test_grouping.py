"""Group commit: who waits together, who fails alone."""

import asyncio
from collections.abc import Sequence

import pytest

from models.grouping import GroupCommit, run_in_parts


class Recorder:
    """A flush that notes its groups; fails when told to."""

    def __init__(self, refuse: Sequence[int] = (), away: bool = False) -> None:
        self.groups: list[list[int]] = []
        self._refuse = set(refuse)
        self._away = away

    async def __call__(self, items: Sequence[int]) -> Sequence[int]:
        self.groups.append(list(items))
        await asyncio.sleep(0.01)
        if self._away:
            raise ConnectionError("away")
        if self._refuse.intersection(items):
            raise ValueError("refused")
        return [item * 10 for item in items]


def gather(group: GroupCommit[int, int], items: Sequence[int]) -> list[int | BaseException]:
    async def main() -> list[int | BaseException]:
        return await asyncio.gather(*(group.submit(item) for item in items), return_exceptions=True)

    return asyncio.run(main())


def test_callers_at_once_share_a_flush_and_get_their_own_results() -> None:
    flush = Recorder()
    assert gather(GroupCommit(flush), [1, 2, 3]) == [10, 20, 30]
    assert flush.groups == [[1, 2, 3]]


def test_a_group_is_bounded() -> None:
    flush = Recorder()
    gather(GroupCommit(flush, limit=2), [1, 2, 3, 4, 5])
    assert flush.groups == [[1, 2], [3, 4], [5]]


def test_a_refused_item_fails_alone() -> None:
    first, second, third = gather(GroupCommit(Recorder(refuse=[2])), [1, 2, 3])
    assert (first, third) == (10, 30)
    assert isinstance(second, ValueError)


def test_an_error_that_all_share_is_not_tried_one_by_one() -> None:
    flush = Recorder(away=True)
    group = GroupCommit(flush, shared_fate=lambda error: isinstance(error, ConnectionError))
    assert all(isinstance(result, ConnectionError) for result in gather(group, [1, 2, 3]))
    assert flush.groups == [[1, 2, 3]]


def test_items_of_one_key_go_into_different_groups() -> None:
    flush = Recorder()
    gather(GroupCommit(flush, key=lambda item: item % 2), [1, 3, 2])
    assert flush.groups == [[1, 2], [3]]


@pytest.mark.parametrize("cancelled", [0, 1])
def test_a_cancelled_caller_does_not_disturb_the_others(cancelled: int) -> None:
    flush = Recorder()

    async def main() -> list[int]:
        group = GroupCommit(flush)
        tasks = [asyncio.create_task(group.submit(item)) for item in (1, 2)]
        await asyncio.sleep(0)
        tasks[cancelled].cancel()
        return [await task for index, task in enumerate(tasks) if index != cancelled]

    assert asyncio.run(main()) == [20 if cancelled == 0 else 10]
    assert flush.groups == [[1, 2]]


def test_idle_waits_for_what_cancelled_callers_left_behind() -> None:
    flush = Recorder()

    async def main() -> bool:
        group = GroupCommit(flush)
        task = asyncio.create_task(group.submit(1))
        await asyncio.sleep(0.002)
        task.cancel()
        await group.idle()
        return group._flusher is None

    assert asyncio.run(main())
    assert flush.groups == [[1]]


def test_a_group_is_split_in_halves_until_the_bad_item_stands_alone() -> None:
    flush = Recorder(refuse=[5])
    results = gather(GroupCommit(flush), list(range(16)))
    assert isinstance(results[5], ValueError)
    assert [result for result in results if not isinstance(result, ValueError)] == [
        item * 10 for item in range(16) if item != 5
    ]
    assert len(flush.groups) == 1 + 2 * 4


def test_the_next_group_does_not_wait_for_one_that_is_split() -> None:
    flush = Recorder(refuse=[0])

    async def main() -> list[int]:
        group = GroupCommit(flush)
        tasks = [asyncio.create_task(group.submit(item)) for item in range(8)]
        await asyncio.sleep(0.005)  # the first group is being written
        later = [asyncio.create_task(group.submit(item)) for item in (100, 101)]
        await asyncio.gather(*later)
        unfinished = [item for item, task in enumerate(tasks) if not task.done()]
        await asyncio.gather(*tasks, return_exceptions=True)
        await group.idle()
        return unfinished

    assert 0 in asyncio.run(main())


def test_a_split_keeps_the_items_of_a_tenant_together() -> None:
    flush = Recorder(refuse=[1, 3, 5, 7])
    gather(GroupCommit(flush, tenant=lambda item: item % 2), list(range(8)))
    assert [0, 2, 4, 6] in flush.groups


def test_tenants_rotate_where_more_wait_than_a_group_takes() -> None:
    flush = Recorder()
    gather(GroupCommit(flush, limit=4, tenant=lambda item: item // 100), [1, 2, 3, 4, 5, 101, 201, 102])
    assert flush.groups == [[1, 101, 201, 2], [102, 3, 4, 5]]


def test_parts_run_until_those_that_fail_stand_alone_and_a_shared_error_ends_it() -> None:
    flush = Recorder(refuse=[2, 6])
    failed = asyncio.run(run_in_parts([1, 2, 3, 4, 5, 6], flush, shared_fate=lambda _: False))
    assert [item for item, _ in failed] == [2, 6]
    away = Recorder(away=True)
    with pytest.raises(ConnectionError):
        asyncio.run(run_in_parts([1, 2], away, shared_fate=lambda error: isinstance(error, ConnectionError)))
    assert away.groups == [[1, 2]]
