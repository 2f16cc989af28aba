"""Text that is given out piece by piece is what would have been given out whole."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engine.text import TextStream


def stream(pieces: list[bytes], stops: list[str]) -> tuple[list[str], bool]:
    text = TextStream(stops)
    shown = []
    for piece in pieces:
        shown.append(text.push(piece))
        if text.stopped:
            return shown, True
    shown.append(text.finish())
    return shown, text.stopped


@pytest.mark.parametrize(
    ("pieces", "stops", "shown", "stopped"),
    [
        ([b"a", b"b"], [], ["a", "b", ""], False),
        (["é".encode()[:1], "é".encode()[1:]], [], ["", "é", ""], False),
        ([b"one EN", b"D two"], ["END"], ["one ", ""], True),
        ([b"one EN", b"E two"], ["END"], ["one ", "ENE two", ""], False),
        ([b"aE", b"N"], ["END"], ["a", "", "EN"], False),
        ([b"x\n", b"\nUser"], ["\n\nUser", "\n\n\n"], ["x", ""], True),
        ([b"abcab", b"cabd"], ["abcabd"], ["", "abc"], True),
        ([b"xABCD"], ["CD", "BC"], ["xA"], True),
        (["😀".encode()[:2]], [], ["", "�"], False),
        ([b"\xff\xfe"], [], ["��", ""], False),
    ],
)
def test_stop_strings_and_characters_across_borders(
    pieces: list[bytes], stops: list[str], shown: list[str], stopped: bool
) -> None:
    assert stream(pieces, stops) == (shown, stopped)


@given(
    st.text(alphabet="abé\n", max_size=40),
    st.lists(st.text(alphabet="abé\n", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 60), max_size=12),
)
def test_no_cut_of_the_bytes_changes_the_text(whole: str, stops: list[str], cuts: list[int]) -> None:
    data = whole.encode()
    borders = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    shown, stopped = stream([data[a:b] for a, b in pairwise(borders)], stops)
    text = "".join(shown)
    assert not any(stop in text for stop in stops)
    if stopped:
        assert any(whole.startswith(text + stop) for stop in stops)
    else:
        assert text == whole


def test_an_empty_stop_string_stops_nothing() -> None:
    assert stream([b"ab"], [""]) == (["ab", ""], False)
