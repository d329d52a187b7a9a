"""Cutting images into chunks: every byte once, nothing outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies as st

from sllm_store.checkpoint.layout import Decode, Image, Piece, Run
from sllm_store.tiers.transfer import (
    HOST_DEVICE,
    ChunkedImage,
    ImageMap,
    Moves,
    Target,
    TransferPlan,
    cut_image,
    cut_pieces,
    cut_targets,
)

if TYPE_CHECKING:
    from sllm_store.checkpoint.model import Checkpoint

CHUNK = 64


@st.composite
def images(draw: st.DrawFn) -> Image:
    """Runs of two files, in order, with gaps."""
    runs, cursor = [], 0
    for file in (0, 1):
        file_offset = 0
        for _ in range(draw(st.integers(0, 5))):
            file_offset += draw(st.integers(0, 50))
            cursor += draw(st.integers(0, 50))
            size = draw(st.integers(1, 300))
            runs.append(
                Run(file=file, file_offset=file_offset, size_bytes=size, image_offset=cursor)
            )
            cursor += size
            file_offset += size
    return Image(size_bytes=cursor, offsets=(), runs=tuple(runs))


@given(images())
def test_chunks_read_every_byte_of_every_run_once(image: Image) -> None:
    expected = {
        (run.file, run.file_offset + i): run.image_offset + i
        for run in image.runs
        for i in range(run.size_bytes)
    }
    got = {}
    for chunk, reads in enumerate(cut_image(image, CHUNK).reads):
        for file, file_offset, size, offset in reads:
            assert size > 0
            assert offset + size <= CHUNK
            for i in range(size):
                assert (file, file_offset + i) not in got
                got[file, file_offset + i] = chunk * CHUNK + offset + i
    assert got == expected


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 300)), max_size=5))
def test_copies_cover_every_piece_once(places: list[tuple[int, int]]) -> None:
    pieces = tuple(
        Piece(image_offset=start, size_bytes=size, arena_offset=1000 * index)
        for index, (start, size) in enumerate(places)
    )
    copies = cut_pieces([Target(device=0, address=0, pieces=pieces)], CHUNK, 20)
    got = sorted(
        (device_offset + i, chunk * CHUNK + offset + i)
        for chunk, entries in enumerate(copies)
        for _, device_offset, size, offset in entries
        for i in range(size)
    )
    assert got == sorted(
        (piece.arena_offset + i, piece.image_offset + i)
        for piece in pieces
        for i in range(piece.size_bytes)
    )


class _File:
    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes


class _Checkpoint:
    files = (_File(2000), _File(2000))


@given(images(), st.integers(0, 3990), st.integers(1, 2000))
def test_the_map_finds_exactly_the_bytes_that_the_image_has(
    image: Image, offset: int, size: int
) -> None:
    checkpoint: Checkpoint = _Checkpoint()  # type: ignore[assignment]
    found = {
        offset + shift + i: start + i
        for start, length, shift in ImageMap.of(checkpoint, image).find(offset, size)
        for i in range(length)
    }
    assert found == {
        2000 * run.file + run.file_offset + i: run.image_offset + i
        for run in image.runs
        for i in range(run.size_bytes)
        if offset <= 2000 * run.file + run.file_offset + i < offset + size
    }


@pytest.mark.parametrize(
    ("moves", "total"),
    [
        (Moves([(0, 0, 7, 0)], []), 7),
        (Moves([(0, 0, 7, 0)], [(0, 256, 50, 20, 7)]), 57),
        (Moves([], [(0, 256, 50, 20, 7)]), 50),
        (Moves([], []), 30),
    ],
)
def test_the_total_counts_what_arrives_if_anything_does(moves: Moves, total: int) -> None:
    plan = TransferPlan()
    step = plan.add(4096, reads=[(0, 0, 30, 0)], moves=moves)
    assert plan.steps[step] == (4096, -1)
    assert plan.copies == [(step, *copy) for copy in moves.copies]
    assert plan.decodes == [(step, *decode) for decode in moves.decodes]
    assert plan.bytes_total == total


def test_a_segment_is_decoded_by_the_step_of_its_chunk() -> None:
    chunked = ChunkedImage(
        image=Image(size_bytes=256, offsets=(), runs=()), chunk_bytes=CHUNK, reads=[[]] * 4
    )
    targets = [
        Target(
            device=0,
            address=0,
            pieces=(Piece(image_offset=0, size_bytes=10, arena_offset=500),),
            decodes=(Decode(64, 64, 100, 0), Decode(200, 5, 9, 100)),
        ),
        Target(device=HOST_DEVICE, address=0, pieces=(), decodes=(Decode(10, 54, 60, 0),)),
    ]
    moves = cut_targets(targets, chunked)
    assert moves == [
        Moves([(0, 500, 10, 0)], [(1, 0, 60, 54, 10)]),
        Moves([], [(0, 0, 100, 64, 0)]),
        Moves([], []),
        Moves([], [(0, 100, 9, 5, 8)]),
    ]
    assert [move.is_any for move in moves] == [True, True, False, True]
