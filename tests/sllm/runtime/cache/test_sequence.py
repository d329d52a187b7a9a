"""Pages and slots have one owner each, whatever is opened, grown and closed."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from sllm.core.errors import CacheFullError
from sllm.runtime.cache.sequence import PageBooks


def test_a_sequence_takes_pages_as_it_grows() -> None:
    books = PageBooks(pages=4, page_tokens=8, slots=2)
    sequence = books.open()
    for tokens, pages in ((1, 1), (8, 1), (9, 2), (5, 2), (32, 4)):
        sequence.reserve(tokens)
        assert len(sequence.pages) == pages == 4 - books.pages_free
    sequence.close()
    assert books.pages_free == 4
    assert books.slots_free == 2


def test_places_follow_the_pages() -> None:
    books = PageBooks(pages=8, page_tokens=4, slots=2)
    first, second = books.open(), books.open()
    for sequence in (first, second, first):
        sequence.reserve(4 * len(sequence.pages) + 4)
    assert first.pages == [0, 2]
    assert first.places(2, 6) == [2, 3, 8, 9]
    assert second.places(0, 4) == [4, 5, 6, 7]


def test_what_does_not_fit_takes_nothing() -> None:
    books = PageBooks(pages=2, page_tokens=4, slots=1)
    sequence = books.open()
    sequence.reserve(5)
    with pytest.raises(CacheFullError, match="1 more pages of 4 tokens"):
        sequence.reserve(9)
    assert len(sequence.pages) == 2
    with pytest.raises(CacheFullError, match="all 1 sequences"):
        books.open()


def test_closing_twice_is_closing_once() -> None:
    books = PageBooks(pages=2, page_tokens=4, slots=2)
    sequence = books.open()
    sequence.reserve(8)
    sequence.close()
    sequence.close()
    assert books.pages_free == 2


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=40))
def test_no_page_has_two_owners(steps: list[tuple[int, int]]) -> None:
    books = PageBooks(pages=6, page_tokens=4, slots=4)
    sequences = [books.open() for _ in range(4)]
    for number, tokens in steps:
        if tokens == 0:
            sequences[number].close()
            sequences[number] = books.open()
            continue
        try:
            sequences[number].reserve(tokens)
        except CacheFullError:
            assert books.pages_for(tokens) - len(sequences[number].pages) > books.pages_free
    owned = [page for sequence in sequences for page in sequence.pages]
    assert len(set(owned)) == len(owned) == 6 - books.pages_free
    assert len({sequence.slot for sequence in sequences}) == 4
