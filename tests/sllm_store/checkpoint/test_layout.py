"""Images and arenas: aligned, without overlap, and every byte arrives where it is looked for."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings, strategies as st

from sllm_store.checkpoint.layout import ALIGNMENT, PAGE, Image, plan_arena, plan_image
from sllm_store.checkpoint.model import Checkpoint, DataFile, Extent

SIZES = st.sampled_from([0, 1, 3, 100, 256, 1000, 4096, 5000, 20_000])
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
def test_every_extent_is_in_the_image_aligned_and_whole(
    drawn: tuple[Checkpoint, list[bytes]],
) -> None:
    checkpoint, contents = drawn
    image = plan_image(checkpoint)
    memory = filled(image, contents)
    assert image.size_bytes % PAGE == 0
    for extent, offset in zip(checkpoint.extents, image.offsets, strict=True):
        assert offset % ALIGNMENT == 0
        assert memory[offset : offset + extent.size_bytes] == content_of(extent, contents)


@settings(deadline=None, max_examples=150)
@given(drawn=checkpoints(), data=st.data())
def test_every_chosen_extent_is_in_the_arena_aligned_and_whole(
    drawn: tuple[Checkpoint, list[bytes]], data: st.DataObject
) -> None:
    checkpoint, contents = drawn
    image = plan_image(checkpoint)
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
    image = plan_image(checkpoint)
    assert image.offsets == (0, 256, 512)
    assert len(image.runs) == 1
    assert len(plan_arena(checkpoint, image, range(3)).pieces) == 1
