"""Images and arenas: aligned, without overlap, and every byte arrives where it is looked for."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from sllm_store.checkpoint.layout import ALIGNMENT, PAGE, Image, plan_arena, plan_image
from sllm_store.checkpoint.model import Checkpoint, DataFile, Extent, Segment, Tensor
from sllm_store.errors import InvalidRequestError

SIZES = st.sampled_from([0, 1, 3, 100, 256, 1000, 4096, 5000, 20_000])
CHUNK = 8192
GAPS = st.sampled_from([0, 0, 0, 1, 8, 100, 4095, 4096, 10_000])


@st.composite
def checkpoints(draw: st.DrawFn) -> tuple[Checkpoint, list[bytes]]:
    """Draw files with extents that do not overlap, in any order, and the files' bytes."""
    extents: list[Extent] = []
    files: list[DataFile] = []
    contents: list[bytes] = []
    for number in range(draw(st.integers(1, 3))):
        aligned = draw(st.booleans())
        cursor = 0
        for _ in range(draw(st.integers(0, 6))):
            cursor += draw(GAPS)
            if aligned:
                cursor = -(-cursor // ALIGNMENT) * ALIGNMENT
            size = draw(SIZES)
            extents.append(Extent(file=number, offset=cursor, size_bytes=size))
            cursor += size
        contents.append(bytes((i * 7 + number * 101 + i // 256) % 256 for i in range(cursor)))
        files.append(DataFile(path=Path(f"{number}"), size_bytes=cursor, mtime_ns=0, inode=number))
    order = draw(st.permutations(extents))
    checkpoint = Checkpoint(
        path=Path("m"), format="x", files=tuple(files), extents=tuple(order), tensors={}
    )
    return checkpoint, contents


def filled(image: Image, contents: list[bytes]) -> bytes:
    """Do the image's reads; no two may write one byte."""
    memory = bytearray(image.size_bytes)
    written = bytearray(image.size_bytes)
    for run in image.runs:
        stop = run.image_offset + run.size_bytes
        assert stop <= image.size_bytes
        assert not any(written[run.image_offset : stop])
        written[run.image_offset : stop] = b"\1" * run.size_bytes
        source = contents[run.file][run.file_offset : run.file_offset + run.size_bytes]
        assert len(source) == run.size_bytes
        memory[run.image_offset : stop] = source
    return bytes(memory)


def content_of(extent: Extent, contents: list[bytes]) -> bytes:
    return contents[extent.file][extent.offset : extent.offset + extent.size_bytes]


@settings(deadline=None, max_examples=150)
@given(drawn=checkpoints())
def test_every_extent_is_in_the_image_whole_and_aligned_or_where_direct_reads_land(
    drawn: tuple[Checkpoint, list[bytes]],
) -> None:
    checkpoint, contents = drawn
    image = plan_image(checkpoint, CHUNK)
    memory = filled(image, contents)
    assert image.size_bytes % PAGE == 0
    for file in range(len(checkpoint.files)):
        placed = [
            (extent.offset, offset)
            for extent, offset in zip(checkpoint.extents, image.offsets, strict=True)
            if extent.file == file
        ]
        assert all(offset % ALIGNMENT == 0 for _, offset in placed) or all(
            place % PAGE == offset % PAGE for place, offset in placed
        )
    for extent, offset in zip(checkpoint.extents, image.offsets, strict=True):
        assert memory[offset : offset + extent.size_bytes] == content_of(extent, contents)


@settings(deadline=None, max_examples=150)
@given(drawn=checkpoints(), data=st.data())
def test_every_chosen_extent_is_in_the_arena_aligned_and_whole(
    drawn: tuple[Checkpoint, list[bytes]], data: st.DataObject
) -> None:
    checkpoint, contents = drawn
    image = plan_image(checkpoint, CHUNK)
    memory = filled(image, contents)
    numbers = range(len(checkpoint.extents))
    chosen = data.draw(st.sets(st.sampled_from(numbers))) if numbers else set[int]()
    arena = plan_arena(checkpoint, image, chosen)
    device = bytearray(arena.size_bytes)
    end = 0
    for piece in arena.pieces:
        assert piece.arena_offset >= end, "pieces ascend and do not overlap"
        end = piece.arena_offset + piece.size_bytes
        assert end <= arena.size_bytes
        source = memory[piece.image_offset : piece.image_offset + piece.size_bytes]
        assert len(source) == piece.size_bytes
        device[piece.arena_offset : end] = source
    assert arena.offsets.keys() == chosen
    for number, offset in arena.offsets.items():
        extent = checkpoint.extents[number]
        assert offset % ALIGNMENT == 0
        assert bytes(device[offset : offset + extent.size_bytes]) == content_of(extent, contents)


def test_an_empty_extent_between_two_others_moves_neither() -> None:
    """Once it merged the pieces on its sides, and the second extent got other bytes."""
    offsets = [(0, 100), (10_240, 0), (10_240, 10)]
    extents = tuple(Extent(file=0, offset=offset, size_bytes=size) for offset, size in offsets)
    image = Image(size_bytes=12_288, offsets=(0, 10_240, 10_240), runs=())
    file = DataFile(path=Path("f"), size_bytes=12_288, mtime_ns=0, inode=0)
    checkpoint = Checkpoint(path=Path("m"), format="x", files=(file,), extents=extents, tensors={})
    arena = plan_arena(checkpoint, image, range(3))
    assert [piece.size_bytes for piece in arena.pieces] == [100, 10]
    assert [arena.offsets[0], arena.offsets[2]] == [p.arena_offset for p in arena.pieces]


def test_a_file_that_is_aligned_keeps_its_own_layout() -> None:
    extents = tuple(Extent(file=0, offset=offset, size_bytes=200) for offset in (0, 256, 512))
    file = DataFile(path=Path("f"), size_bytes=4096, mtime_ns=0, inode=0)
    checkpoint = Checkpoint(path=Path("m"), format="x", files=(file,), extents=extents, tensors={})
    image = plan_image(checkpoint, CHUNK)
    assert image.offsets == (0, 256, 512)
    assert len(image.runs) == 1
    assert len(plan_arena(checkpoint, image, range(3)).pieces) == 1


def published(sizes: list[int], dtype: str, *, header_bytes: int) -> Checkpoint:
    """Describe a file of tensors one after another behind a header, as safetensors has them."""
    places = list(accumulate(sizes, initial=header_bytes))
    extents = [
        Extent(file=0, offset=place, size_bytes=size)
        for place, size in zip(places, sizes, strict=False)
    ]
    tensors = {
        f"t{number}": Tensor(f"t{number}", dtype, (size,), (1,), number)
        for number, size in enumerate(sizes)
    }
    file = DataFile(path=Path("f"), size_bytes=places[-1], mtime_ns=0, inode=0)
    return Checkpoint(
        path=Path("m"), format="x", files=(file,), extents=tuple(extents), tensors=tensors
    )


def test_a_published_file_keeps_its_layout_and_goes_to_a_gpu_in_one_piece() -> None:
    checkpoint = published([8192, 512, 8192], "bfloat16", header_bytes=1032)
    image = plan_image(checkpoint, CHUNK)
    assert image.offsets == (1032, 9224, 9736)
    assert len(image.runs) == 1
    arena = plan_arena(checkpoint, image, range(3))
    assert arena.offsets == {0: 0, 1: 8192, 2: 8704}
    assert len(arena.pieces) == 1


def test_tensors_that_are_aligned_by_moving_them_are_a_piece_each_if_they_are_large() -> None:
    checkpoint = published([5 << 20, 1000, 5 << 20, 8], "bfloat16", header_bytes=1032)
    image = plan_image(checkpoint, CHUNK)
    assert image.offsets[0] == 1032
    arena = plan_arena(checkpoint, image, range(4))
    assert len(arena.pieces) == 2
    assert all(offset % ALIGNMENT == 0 for offset in arena.offsets.values())


def test_a_file_of_small_tensors_of_odd_sizes_is_packed_to_move_in_one_piece() -> None:
    checkpoint = published([1000] * 50, "bfloat16", header_bytes=1032)
    image = plan_image(checkpoint, CHUNK)
    assert all(offset % ALIGNMENT == 0 for offset in image.offsets)
    assert len(plan_arena(checkpoint, image, range(50)).pieces) == 1


def test_a_file_with_elements_that_are_not_aligned_is_packed() -> None:
    """Nothing could look at such a tensor where it would be."""
    checkpoint = published([8192, 512], "float32", header_bytes=1030)
    image = plan_image(checkpoint, CHUNK)
    assert image.offsets == (0, 8192)


@st.composite
def compressed_checkpoints(draw: st.DrawFn) -> tuple[Checkpoint, list[bytes]]:
    """Draw files of extents in small segments, some of them coded, as ours are laid out.

    A coded segment of this test holds its raw bytes without the zeros at their end.
    """
    extents: list[Extent] = []
    files: list[DataFile] = []
    contents: list[bytes] = []
    for number in range(draw(st.integers(1, 3))):
        content = bytearray()
        for _ in range(draw(st.integers(0, 5))):
            count = draw(st.integers(0, 4))
            content += bytes(-len(content) % (PAGE if count else ALIGNMENT))
            content += bytes(draw(st.sampled_from([0, 0, PAGE, 4 * PAGE])))
            start = len(content)
            segments: list[Segment] = []
            for _ in range(count):
                content += bytes(-len(content) % PAGE)
                raw = draw(st.sampled_from([100, 2 * PAGE, 6000]))
                stored = draw(st.sampled_from([raw, raw, 1, 99, min(raw, 5000)]))
                segments.append(Segment(len(content), stored, raw, 0))
                content += bytes(1 + (7 * i + len(content)) % 255 for i in range(stored))
            size = sum(segment.raw_bytes for segment in segments)
            if not count:
                size = draw(st.sampled_from([0, 1, 300, 20_000]))
                content += bytes(1 + (i * 11 + number) % 255 for i in range(size))
            extent = Extent(file=number, offset=start, size_bytes=size, segments=tuple(segments))
            extents.append(extent)
        contents.append(bytes(content))
        files.append(
            DataFile(path=Path(f"{number}"), size_bytes=len(content), mtime_ns=0, inode=number)
        )
    checkpoint = Checkpoint(
        path=Path("m"),
        format="x",
        files=tuple(files),
        extents=tuple(extents),
        tensors={},
        encoding="rans-f16",
    )
    return checkpoint, contents


def raw_of(extent: Extent, contents: list[bytes]) -> bytes:
    if not extent.segments:
        return content_of(extent, contents)
    return b"".join(
        contents[extent.file][segment.offset : segment.offset + segment.stored_bytes].ljust(
            segment.raw_bytes, b"\0"
        )
        for segment in extent.segments
    )


@settings(deadline=None, max_examples=200)
@given(drawn=compressed_checkpoints())
def test_no_coded_segment_crosses_a_chunk_and_every_page_keeps_its_place(
    drawn: tuple[Checkpoint, list[bytes]],
) -> None:
    checkpoint, contents = drawn
    image = plan_image(checkpoint, CHUNK)
    memory = filled(image, contents)
    assert image.size_bytes % PAGE == 0
    for number, extent in enumerate(checkpoint.extents):
        if not extent.segments:
            start = image.offsets[number]
            assert memory[start : start + extent.size_bytes] == content_of(extent, contents)
        for segment, start in zip(extent.segments, image.segments.get(number, ()), strict=True):
            end = start + segment.stored_bytes
            assert start % PAGE == segment.offset % PAGE
            assert memory[start:end] == contents[extent.file][segment.offset :][: end - start]
            assert not segment.is_coded or start // CHUNK == (end - 1) // CHUNK
    free = 0
    for run in image.runs:
        assert run.image_offset % PAGE == run.file_offset % PAGE
        assert run.image_offset >= free
        free = run.image_offset + run.size_bytes
        end = run.file_offset + run.size_bytes
        assert end % PAGE == 0 or end == checkpoint.files[run.file].size_bytes


@settings(deadline=None, max_examples=200)
@given(drawn=compressed_checkpoints(), data=st.data())
def test_arenas_of_compressed_checkpoints_have_every_chosen_extent_decoded(
    drawn: tuple[Checkpoint, list[bytes]], data: st.DataObject
) -> None:
    checkpoint, contents = drawn
    image = plan_image(checkpoint, CHUNK)
    memory = filled(image, contents)
    numbers = range(len(checkpoint.extents))
    chosen = data.draw(st.sets(st.sampled_from(numbers))) if numbers else set[int]()
    arena = plan_arena(checkpoint, image, chosen)
    device = bytearray(arena.size_bytes)
    written = bytearray(arena.size_bytes)
    moves = [
        (piece.arena_offset, memory[piece.image_offset :][: piece.size_bytes])
        for piece in arena.pieces
    ] + [
        (
            decode.arena_offset,
            memory[decode.image_offset :][: decode.stored_bytes].ljust(decode.raw_bytes, b"\0"),
        )
        for decode in arena.decodes
    ]
    for start, content in moves:
        assert not any(written[start : start + len(content)])
        written[start : start + len(content)] = b"\1" * len(content)
        device[start : start + len(content)] = content
    assert len(device) == arena.size_bytes
    assert arena.moved_bytes == sum(len(content) for _, content in moves)
    assert arena.offsets.keys() == chosen
    for number, offset in arena.offsets.items():
        extent = checkpoint.extents[number]
        assert offset % ALIGNMENT == 0
        assert bytes(device[offset : offset + extent.size_bytes]) == raw_of(extent, contents)


def test_a_segment_larger_than_a_chunk_is_refused() -> None:
    segment = Segment(0, PAGE + 1, 2 * PAGE, 0)
    extent = Extent(file=0, offset=0, size_bytes=2 * PAGE, segments=(segment,))
    file = DataFile(path=Path("f"), size_bytes=2 * PAGE, mtime_ns=0, inode=0)
    checkpoint = Checkpoint(
        path=Path("m"),
        format="x",
        files=(file,),
        extents=(extent,),
        tensors={},
        encoding="rans-f16",
    )
    with pytest.raises(InvalidRequestError, match="does not fit a chunk of 4096: use larger"):
        plan_image(checkpoint, PAGE)
