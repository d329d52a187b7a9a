"""A streamed text ends where the whole text would, however it is cut."""

from __future__ import annotations

from hypothesis import given, strategies as st

from sllm.core.stops import StopScanner

LETTERS = st.text("abc", max_size=12)


def _scan(pieces: list[str], stops: list[str]) -> tuple[str, StopScanner]:
    scanner = StopScanner(stops)
    shown = "".join(scanner.feed(piece) for piece in pieces)
    return shown + scanner.flush(), scanner


def test_the_beginning_of_a_stop_is_held_until_it_is_none() -> None:
    scanner = StopScanner(["</s>"])
    assert [scanner.feed(text) for text in ("a<", "/", "b</s", ">c", "d")] == [
        "a",
        "",
        "</b",
        "",
        "",
    ]
    assert scanner.stopped == "</s>"


def test_what_is_held_in_the_end_is_shown() -> None:
    shown, scanner = _scan(["one\nUs"], ["\nUser:"])
    assert (shown, scanner.stopped) == ("one\nUs", None)


def test_of_several_the_one_that_begins_first_wins() -> None:
    assert _scan(["ab", "c"], ["abX", "b"])[0] == "a"
    assert _scan(["ab"], ["abX", "b"])[0] == "a"
    assert _scan(["abX"], ["abX", "b"])[0] == ""


@given(st.lists(LETTERS, max_size=8), st.lists(st.text("abc", min_size=1, max_size=4), max_size=4))
def test_cuts_make_no_difference(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    shown, scanner = _scan(pieces, stops)
    assert shown == text[: min(ends, default=len(text))]
    assert (scanner.stopped is not None) == bool(ends)
