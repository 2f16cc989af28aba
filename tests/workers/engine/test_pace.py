"""How a step is divided."""

import pytest

from workers.engine.pace import Pace, share_out


@pytest.mark.parametrize(
    ("room", "wanted", "given"),
    [
        (10, [], []),
        (10, [4], [4]),
        (10, [40], [10]),
        (10, [40, 3], [7, 3]),
        (10, [40, 40], [5, 5]),
        (10, [40, 2, 2, 40], [5, 2, 2, 1]),
        (9, [40, 40, 40], [5, 4, 0]),
        (0, [4], [0]),
    ],
)
def test_a_long_prompt_leaves_half_to_those_behind_it(room: int, wanted: list[int], given: list[int]) -> None:
    assert share_out(room, wanted) == given


def test_nothing_is_held_back_when_nobody_writes() -> None:
    pace = Pace(512)
    pace.learn(8, 0, 0.040)
    pace.learn(0, 100, 0.300)
    assert pace.prompt_tokens(writing=0, reading=1) == 512


def test_a_step_beside_writers_takes_about_twice_their_own() -> None:
    pace = Pace(512)
    pace.learn(8, 0, 0.040)
    pace.learn(0, 100, 0.300)
    tokens = pace.prompt_tokens(writing=8, reading=1)
    assert 0.025 < tokens * 0.003 < 0.050


def test_what_a_long_prompt_makes_the_writers_own_steps_cost_is_part_of_what_it_may_cost() -> None:
    pace = Pace(512)
    pace.learn(8, 0, 0.040)
    before = pace.prompt_tokens(writing=8, reading=1)
    pace.learn(8, before, 0.040 + 0.003 * before)
    before = pace.prompt_tokens(writing=8, reading=1)
    for _ in range(10):
        pace.learn(8, 10, 0.060 + 0.003 * 10)
        pace.learn(8, 0, 0.060)
    after = pace.prompt_tokens(writing=8, reading=1)
    assert 0 < after < before
    assert 0.060 + 0.003 * after < 2.5 * 0.040


def test_a_prompt_comes_to_its_end_however_dear_the_writers_have_become() -> None:
    pace = Pace(512)
    pace.learn(8, 0, 0.010)
    for _ in range(10):
        pace.learn(8, 10, 0.130)
        pace.learn(8, 0, 0.100)
    assert pace.prompt_tokens(writing=8, reading=1) >= 4


def test_many_readers_are_not_held_up_by_few_writers() -> None:
    pace = Pace(512)
    pace.learn(1, 0, 0.010)
    pace.learn(0, 100, 0.300)
    assert pace.prompt_tokens(writing=1, reading=15) > 300
    assert pace.prompt_tokens(writing=1, reading=1) < 10
    assert pace.prompt_tokens(writing=1, reading=1, under_way=False) == 511


def test_what_a_prompt_token_costs_is_learnt_beside_writers_too() -> None:
    pace = Pace(512)
    pace.learn(8, 0, 0.040)
    for _ in range(30):
        pace.learn(8, 10, 0.140)
        pace.learn(8, 0, 0.040)
    assert pace.prompt_tokens(writing=8, reading=1) < 10
    for _ in range(30):
        pace.learn(8, 10, 0.041)
        pace.learn(8, 0, 0.040)
    assert pace.prompt_tokens(writing=8, reading=1) > 100


def test_now_and_then_a_step_goes_without_a_prompt_to_see_what_the_writers_take_by_now() -> None:
    pace = Pace(512)
    assert pace.prompt_tokens(writing=8, reading=1) == 0  # nothing is known yet
    pace.learn(8, 0, 0.040)
    carried = []
    for _ in range(40):
        tokens = pace.prompt_tokens(writing=8, reading=1)
        pace.learn(8, tokens, 0.040 + 0.003 * tokens)
        carried.append(tokens)
    assert 2 <= carried.count(0) <= 4
    assert max(carried) > 5
