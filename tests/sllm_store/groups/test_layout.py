"""Neighbours of a group are read at once, and nothing overlaps or is misaligned."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, strategies as st

from sllm_store.groups.layout import PAGE, lay_out
from sllm_store.groups.stored import StoredTensor


def _tensor(offset: int, size_bytes: int, *, file: int = 0, item_bytes: int = 4) -> StoredTensor:
    return StoredTensor(
        name=f"{file}:{offset}",
        dtype="float32",
        shape=(size_bytes // 4,),
        item_bytes=item_bytes,
        file=file,
        offset=offset,
        size_bytes=size_bytes,
    )


def test_neighbours_are_one_read_at_their_place_in_the_page() -> None:
    layout = lay_out([_tensor(10256, 4096), _tensor(10000, 256), _tensor(14400, 64)])
    assert layout.reads == ((0, 10000, 4464, 10000 % PAGE),)
    assert layout.places == (2064, 1808, 6208)
    assert layout.size_bytes == 8192


def test_distant_tensors_and_other_files_are_read_by_themselves() -> None:
    layout = lay_out([_tensor(0, 64), _tensor(64 + PAGE, 64), _tensor(128, 64, file=1)])
    assert [read[:3] for read in layout.reads] == [(0, 0, 64), (0, 64 + PAGE, 64), (1, 128, 64)]


def test_a_tensor_that_is_misaligned_in_its_file_is_aligned_in_memory() -> None:
    layout = lay_out([_tensor(10, 6, item_bytes=2), _tensor(17, 8)])
    assert [place % 4 for place in layout.places] == [2, 0]
    assert len(layout.reads) == 2


def test_an_empty_group_takes_nothing() -> None:
    assert lay_out([]).size_bytes == 0
    assert lay_out([_tensor(128, 0)]).reads == ()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3 * PAGE), st.integers(0, PAGE))))
def test_every_tensor_has_bytes_of_its_own_that_are_read(
    parts: list[tuple[int, int, int]],
) -> None:
    tensors = []
    ends = [0, 0, 0]
    for file, gap, size_bytes in parts:
        tensors.append(_tensor(ends[file] + gap, size_bytes, file=file, item_bytes=1 + gap % 2))
        ends[file] += gap + size_bytes
    layout = lay_out(tensors)
    taken = sorted(
        (place, place + tensor.size_bytes)
        for tensor, place in zip(tensors, layout.places, strict=True)
        if tensor.size_bytes
    )
    assert all(left[1] <= right[0] for left, right in pairwise(taken))
    assert all(end <= layout.size_bytes for _, end in taken)
    for tensor, place in zip(tensors, layout.places, strict=True):
        assert place % tensor.item_bytes == 0
        covering = [
            (file, start, size_bytes, at)
            for file, start, size_bytes, at in layout.reads
            if file == tensor.file
            and start <= tensor.offset
            and tensor.offset + tensor.size_bytes <= start + size_bytes
            and place - at == tensor.offset - start
        ]
        assert covering or not tensor.size_bytes
