"""The benchmark of old against new compares round by round, and runs the code of the revision that it names."""

import pytest

from benchmarks.against import compare
from tests.revisions import (
    PREVIOUS,
    RevisionError,
    commit_of,
    console_script,
    exported,
    require_own_code,
    skip_without,
)


def test_a_ratio_compares_the_readings_of_one_round() -> None:
    """A machine that becomes twice as slow in the middle changes the medians' spread, and no ratio."""
    found = compare("submit", [1000.0, 500.0, 480.0], [1100.0, 550.0, 528.0])
    assert found.ratios == pytest.approx([1.1, 1.1, 1.1])
    assert found.worse_percent == pytest.approx(-10)


@pytest.mark.parametrize(("name", "worse"), [("idle", 25), ("submit", -25), ("rows", -25)])
def test_more_is_worse_for_times_and_better_for_rates(name: str, worse: float) -> None:
    assert compare(name, [10.0, 20.0], [12.5, 25.0]).worse_percent == pytest.approx(worse)


def test_another_revision_runs_its_own_code() -> None:
    skip_without(PREVIOUS)
    with exported(PREVIOUS) as root:
        require_own_code(root)
        assert console_script(root)[1] == "-c"
        assert not (root / ".git").exists()
    assert not root.exists()


def test_a_revision_that_is_not_there_is_named() -> None:
    with pytest.raises(RevisionError, match="no revision nosuch"):
        commit_of("nosuch")
