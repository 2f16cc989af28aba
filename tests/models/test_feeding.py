"""Which batch gets the next places: the rule by itself."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from models.feeding import Hungry, Waiting, share_buffer, share_out

PLENTY = 10**9


def hungry(number: int, *, priority: int = 1, unfinished: int = 0, unpublished: int = 0, most: int = PLENTY) -> Hungry:
    return Hungry(UUID(int=number), priority, unfinished, unpublished, most)


def shares(*batches: Hungry, buffer: int) -> list[int]:
    given_out = share_out(batches, buffer)
    return [given_out.get(batch.id, 0) for batch in batches]


def test_batches_of_one_tenant_share_its_buffer() -> None:
    assert shares(hungry(1), hungry(2), buffer=10) == [5, 5]


def test_a_batch_that_came_later_catches_up_first() -> None:
    assert shares(hungry(1, unfinished=30, unpublished=4), hungry(2), buffer=20) == [0, 16]
    assert shares(hungry(1, unfinished=6), hungry(2), buffer=10) == [2, 8]


def test_no_batch_gets_more_than_its_max_parallel_leaves() -> None:
    assert shares(hungry(1, unfinished=3, most=4), hungry(2), buffer=10) == [1, 9]
    assert shares(hungry(1, unfinished=9, most=4), buffer=10) == [0]


def test_batches_of_higher_priority_go_first_and_the_others_get_what_is_left() -> None:
    high, low = hungry(1, priority=0), hungry(2, priority=2, unfinished=8, unpublished=8)
    assert shares(high, low, buffer=8) == [8, 0]
    assert shares(hungry(1, priority=0, most=3), hungry(2, priority=2), buffer=8) == [3, 5]


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 60)), min_size=1, max_size=8),
    st.integers(0, 50),
)
def test_the_buffer_is_filled_and_never_more(rows: list[tuple[int, int, int]], buffer: int) -> None:
    batches = [
        hungry(number, unfinished=unfinished, unpublished=min(unpublished, unfinished), most=most)
        for number, (unfinished, unpublished, most) in enumerate(rows)
    ]
    got = shares(*batches, buffer=buffer)
    room = max(0, buffer - sum(batch.unpublished for batch in batches))
    assert sum(got) == min(room, sum(batch.free for batch in batches))
    levels = [batch.unfinished + share for batch, share in zip(batches, got, strict=True) if share]
    for batch, share in zip(batches, got, strict=True):
        assert share <= batch.free
        if share < batch.free:
            assert all(level <= batch.unfinished + share + 1 for level in levels)


def test_a_queues_buffer_is_shared_by_tenants() -> None:
    assert share_buffer([Waiting(0, PLENTY)] * 3, 60) == [20, 20, 20]
    assert share_buffer([Waiting(0, 5), Waiting(0, PLENTY), Waiting(0, PLENTY)], 60) == [5, 28, 27]


def test_weights_divide_a_buffer() -> None:
    light, heavy = Waiting(0, PLENTY), Waiting(0, PLENTY, weight=3)
    assert share_buffer([light, heavy], 32) == [8, 24]
    assert share_buffer([light] * 4 + [heavy], 5) == [1, 1, 1, 1, 1]
    assert share_buffer([heavy] + [light] * 4, 5) == [3, 1, 1, 0, 0]


def test_a_tenant_that_holds_more_than_its_share_takes_nothing_of_the_others_shares() -> None:
    assert share_buffer([Waiting(60, PLENTY), Waiting(0, PLENTY)], 60) == [30, 30]


def test_with_more_tenants_than_places_those_that_come_first_get_one_each() -> None:
    idle, busy = Waiting(0, PLENTY), Waiting(1, PLENTY)
    assert share_buffer([idle] * 5, 3) == [1, 1, 1, 0, 0]
    assert share_buffer([idle, idle, busy, idle, busy], 3) == [1, 0, 0, 0, 0]


def test_a_place_that_nobody_else_takes_goes_to_who_holds_more_than_its_share() -> None:
    assert share_buffer([Waiting(0, 10, weight=2), Waiting(13, 2, weight=3)], 24) == [10, 14]


@given(
    st.lists(st.builds(Waiting, st.integers(0, 30), st.integers(0, 30), st.integers(1, 3)), min_size=1, max_size=12),
    st.integers(0, 60),
)
def test_a_buffer_is_used_up_and_no_tenant_has_much_more_than_another(tenants: list[Waiting], buffer: int) -> None:
    shares = share_buffer(tenants, buffer)
    assert sum(shares) <= buffer
    level = max(share / tenant.weight for tenant, share in zip(tenants, shares, strict=True))
    for tenant, share in zip(tenants, shares, strict=True):
        assert share <= tenant.held + tenant.free
        assert share == tenant.held + tenant.free or share / tenant.weight >= level - 1
    after = [max(tenant.held, share) for tenant, share in zip(tenants, shares, strict=True)]
    assert sum(after) >= min(buffer, sum(tenant.held + tenant.free for tenant in tenants))
    excess = sum(max(0, tenant.held - share) for tenant, share in zip(tenants, shares, strict=True))
    assert sum(after) <= buffer + excess
