"""Which bytes of shared storages are written, and that every view finds its own in them."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import given, strategies as st

from sllm_store.checkpoint.dtype import ITEM_SIZES
from sllm_store.checkpoint.source import Source, plan_ranges

if TYPE_CHECKING:
    from sllm_store.checkpoint.source import StorageRange

BASE = 1 << 20


def view(start: int, size: int, *, dtype: str = "uint8", storage: object = "s") -> Source:
    """Return a view of `size` elements from element `start` on."""
    return Source(
        name=f"{start}+{size}",
        dtype=dtype,
        shape=(size,),
        stride=(1,),
        storage_offset=start,
        storage=str(storage),
        address=BASE,
        size_bytes=1 << 30,
    )


def bounds(ranges: list[StorageRange]) -> list[tuple[int, int]]:
    return [(part.start, part.end) for part in ranges]


def test_overlapping_views_are_one_range() -> None:
    assert bounds(plan_ranges([view(100, 50), view(0, 120), view(149, 10)])) == [(0, 159)]


def test_a_small_hole_is_kept_and_a_page_is_not() -> None:
    assert bounds(plan_ranges([view(0, 10), view(4105, 10)])) == [(0, 4115)]
    assert bounds(plan_ranges([view(4106, 10), view(0, 10)])) == [(0, 10), (4106, 4116)]


def test_the_hole_is_looked_for_behind_the_longest_view() -> None:
    assert bounds(plan_ranges([view(0, 9000), view(1, 1), view(9000, 5)])) == [(0, 9005)]


def test_views_of_different_widths_start_at_a_whole_element_of_each() -> None:
    ranges = plan_ranges([view(11, 4), view(2, 3, dtype="float64")])
    assert bounds(ranges) == [(8, 40)]
    assert ranges[0].address == BASE + 8


def test_a_view_alone_is_written_alone() -> None:
    assert bounds(plan_ranges([view(11, 4)])) == [(11, 15)]


def test_a_view_without_elements_needs_no_bytes() -> None:
    assert plan_ranges([view(11, 0)]) == []


def test_storages_are_written_in_the_order_in_which_they_are_first_seen() -> None:
    ranges = plan_ranges(
        [view(0, 1, storage="b"), view(0, 1, storage="a"), view(5, 1, storage="b")]
    )
    assert [part.storage for part in ranges] == ["b", "a"]


@given(
    drawn=st.lists(
        st.tuples(
            st.integers(0, 20_000),
            st.integers(0, 3000),
            st.sampled_from(["uint8", "int16", "float32", "complex128"]),
            st.integers(0, 2),
        ),
        max_size=12,
    )
)
def test_every_view_is_in_one_range_at_a_whole_element_and_no_ranges_overlap(
    drawn: list[tuple[int, int, str, int]],
) -> None:
    sources = [view(a, n, dtype=dtype, storage=storage) for a, n, dtype, storage in drawn]
    ranges = plan_ranges(sources)
    for source in sources:
        own = [part for part in ranges if part.storage == source.storage]
        ordered = sorted(bounds(own))
        assert all(one[1] <= two[0] for one, two in pairwise(ordered))
        if source.shape != (0,):
            (part,) = [part for part in own if part.holds(source)]
            start, end = source.span
            assert part.start <= start
            assert end <= part.end
            assert (start - part.start) % ITEM_SIZES[source.dtype] == 0
    assert all(part.start >= 0 and part.address == BASE + part.start for part in ranges)
