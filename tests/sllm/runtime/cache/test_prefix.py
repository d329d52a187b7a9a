"""Pages are found by what they hold, shared while they are used, and evicted the oldest first."""

from __future__ import annotations

from hypothesis import given, settings, strategies as st

from sllm.core.errors import CacheFullError
from sllm.runtime.cache.prefix import PageChain
from sllm.runtime.cache.sequence import CachedSequence, PageBooks

SIZE = 4


def _names(ids: list[int]) -> list[bytes]:
    return list(PageChain().names(ids, SIZE))


def _fill(books: PageBooks, ids: list[int]) -> CachedSequence:
    """Return a sequence that computed some ids, beginning with what is known of them."""
    names = _names(ids)
    sequence = books.open(books.find(names))
    sequence.reserve(len(ids))
    sequence.length = len(ids)
    sequence.note(names)
    return sequence


def test_a_name_says_all_tokens_up_to_its_page() -> None:
    chain, ids = PageChain(), list(range(11))
    assert len(chain.names(ids, SIZE)) == 2
    assert list(chain.names([*ids, 11, 12], SIZE)) == _names([*ids, 11, 12])
    assert _names(ids)[1] != _names([9, *ids[1:]])[1]
    assert _names(ids)[0] == _names([*ids[:4], 9])[0]


def test_a_page_is_shared_while_it_is_used_and_found_afterwards() -> None:
    books = PageBooks(pages=6, page_tokens=SIZE, slots=3)
    first = _fill(books, list(range(10)))
    second = _fill(books, [*range(8), 20, 21, 22, 23])
    assert second.pages[:2] == first.pages[:2]
    assert books.pages_free == 2
    first.close()
    assert books.pages_free == 3
    second.close()
    assert books.pages_free == 6
    assert len(books.find(_names(list(range(8))))) == 2


def test_the_end_of_the_oldest_is_evicted_first() -> None:
    books = PageBooks(pages=4, page_tokens=SIZE, slots=3)
    old, new = list(range(8)), list(range(10, 18))
    _fill(books, old).close()
    _fill(books, new).close()
    taking = books.open()
    for left, tokens in ((1, 4), (0, 8)):
        taking.reserve(tokens)
        assert len(books.find(_names(old))) == left
        assert len(books.find(_names(new))) == 2


def test_a_page_that_is_found_is_no_room_for_the_rest() -> None:
    books = PageBooks(pages=3, page_tokens=SIZE, slots=2)
    ids = list(range(8))
    _fill(books, ids).close()
    found = books.find(_names(ids))
    assert books.has_room(12, found)
    assert not books.has_room(13, found)
    assert not books.has_room(13, [])


def test_what_is_forgotten_is_nobody_else_s() -> None:
    books = PageBooks(pages=4, page_tokens=SIZE, slots=2)
    failed = _fill(books, list(range(8)))
    failed.forget()
    assert books.find(_names(list(range(8)))) == []
    failed.close()
    assert books.pages_free == 4


def test_a_model_whose_pages_depend_on_more_shares_none() -> None:
    books = PageBooks(pages=4, page_tokens=SIZE, slots=2, shares=False)
    _fill(books, list(range(8))).close()
    assert books.find(_names(list(range(8)))) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 1), max_size=30))))
def test_a_page_never_holds_what_another_user_did_not_put_there(
    steps: list[tuple[int, list[int]]],
) -> None:
    books = PageBooks(pages=7, page_tokens=SIZE, slots=3)
    written: dict[int, tuple[int, ...]] = {}
    sequences: list[tuple[CachedSequence, list[int]] | None] = [None] * 3
    for place, ids in steps:
        if (held := sequences[place]) is not None:
            held[0].close()
            sequences[place] = None
        names = _names(ids)
        found = books.find(names)
        room = books.has_room(len(ids), found)
        sequence = books.open(found)
        try:
            sequence.reserve(len(ids))
        except CacheFullError:
            assert not room
            sequence.close()
            continue
        assert room
        for index in range(len(found), len(sequence.pages)):
            written[sequence.pages[index]] = tuple(ids[: (index + 1) * SIZE])
        sequence.length = len(ids)
        sequence.note(names)
        sequences[place] = (sequence, ids)
        used = set()
        for each in filter(None, sequences):
            used |= set(each[0].pages)
            for index, page in enumerate(each[0].pages):
                assert written[page] == tuple(each[1][: (index + 1) * SIZE])
        assert books.pages_free == 7 - len(used)
