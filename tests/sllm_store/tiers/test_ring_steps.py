"""Chunks through a ring: every byte once, and nobody waits needlessly."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from sllm_store import native
from sllm_store.checkpoint.layout import Image, Piece, Run
from sllm_store.tiers import ring_steps
from sllm_store.tiers.ring_steps import Ring, alternate, find_cold, plan_ring, take_turns
from sllm_store.tiers.transfer import (
    HOST_DEVICE,
    NO_MOVES,
    ChunkedImage,
    Moves,
    Target,
    cut_image,
    cut_targets,
    run_plan,
)

MB = 1 << 20
CHUNK = MB
HEADER = 5 * 4096 + 1032  # Tensors of published files begin anywhere.
SIZE = 20 * MB + 4711


@pytest.fixture
def file(tmp_path: Path) -> native.File:
    path = tmp_path / "data"
    path.write_bytes(os.urandom(HEADER + SIZE))
    os.sync()
    opened = native.File(str(path))
    opened.evict()
    return opened


def chunked(*, gap: int = 0) -> ChunkedImage:
    """One run of the file, or two with a gap between them that only the image has."""
    half = SIZE // 2 // 256 * 256
    runs = [
        Run(file=0, file_offset=HEADER, size_bytes=half, image_offset=0),
        Run(file=0, file_offset=HEADER + half, size_bytes=SIZE - half, image_offset=half + gap),
    ]
    return cut_image(Image(size_bytes=SIZE + gap, offsets=(), runs=tuple(runs)), CHUNK)


def target(address: int, *, gap: int = 0) -> Target:
    pieces = (Piece(image_offset=0, size_bytes=SIZE + gap, arena_offset=0),)
    return Target(device=HOST_DEVICE, address=address, pieces=pieces)


def halve(file: native.File) -> None:
    """Have the first half in the page cache."""
    memory = native.HostBuffer(SIZE)
    file.evict()
    file.read_into(0, memory.address, file.size // 2)
    descriptor = os.open(file.path, os.O_RDONLY)
    try:  # What was read ahead.
        start = file.size // 2 // MB * MB
        os.posix_fadvise(descriptor, start, file.size - start, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("gap", [0, 256])
@pytest.mark.parametrize("state", ["cold", "warm", "half"])
@pytest.mark.parametrize("mode", ["auto", "direct", "buffered"])
def test_every_byte_arrives(  # noqa: PLR0917
    file: native.File, slots: int, gap: int, state: str, mode: str
) -> None:
    if state == "half":
        halve(file)
    ring = native.HostBuffer(slots * CHUNK)
    memory = native.HostBuffer(SIZE + gap)
    cut = chunked(gap=gap)
    targets = [target(memory.address, gap=gap)]
    plan = plan_ring(
        cut,
        cut_targets(targets, cut),
        Ring(address=ring.address, slots=slots, slot_bytes=CHUNK),
        cold=find_cold(cut, [file], mode),
    )
    native.run_transfer(
        [file],
        plan.steps,
        plan.reads,
        plan.copies,
        [(one.device, one.address, one.via) for one in targets],
        mode=mode,
        threads=3,
        control=native.Control(),
    )
    whole = native.HostBuffer(SIZE)
    file.read_into(HEADER, whole.address, SIZE)
    half = SIZE // 2 // 256 * 256
    assert native.crc32c(memory.address, half) == native.crc32c(whole.address, half)
    second = native.crc32c(memory.address + half + gap, SIZE - half)
    assert second == native.crc32c(whole.address + half, SIZE - half)


def test_what_is_cached_is_read_as_it_is(file: native.File) -> None:
    cut = chunked()
    moves = cut_targets([target(1 << 30)], cut)
    ring = Ring(address=1 << 20, slots=4, slot_bytes=CHUNK)
    plan = plan_ring(cut, moves, ring, cold=frozenset())
    assert sum(size for _, _, _, size, _ in plan.reads) == SIZE
    assert [after for _, after in plan.steps[:5]] == [-1, -1, -1, -1, 0]


def test_the_disk_waits_for_nothing_that_the_page_cache_has(file: native.File) -> None:
    """Else the second half of a file would be asked for when the first had arrived."""
    cut = chunked()
    half = cut.chunks_total // 2
    cold = frozenset(range(half, cut.chunks_total))
    ring = Ring(address=1 << 20, slots=6, slot_bytes=CHUNK)
    plan = plan_ring(cut, cut_targets([target(1 << 30)], cut), ring, cold=cold)
    for step, (_, after) in enumerate(plan.steps):
        assert after == -1 or (after in cold) == (step in cold)
    assert [plan.steps[half + number][1] for number in range(4)] == [-1, -1, -1, half]


def test_in_a_ring_of_even_size_each_kind_has_slots_of_its_own_while_both_last() -> None:
    cold = frozenset(range(10, 30))
    turns = alternate(range(5, 20), cold)
    assert sorted(turns) == list(range(5, 20))
    assert turns[:10] == (10, 5, 11, 6, 12, 7, 13, 8, 14, 9)
    assert turns[10:] == (15, 16, 17, 18, 19)
    assert alternate((), cold) == ()
    assert alternate(range(3), cold) == (0, 1, 2)


class HalfCached:
    """A file of which the page cache has the beginning."""

    def __init__(self, cached: int) -> None:
        self._cached = cached
        self.asked = 0

    def are_resident(
        self, files: list[native.File], ranges: list[tuple[int, int, int]]
    ) -> list[bool]:
        self.asked += len(ranges)
        return [2 * (self._cached - offset) >= size for _, offset, size in ranges]


def test_the_page_cache_is_asked_which_chunks_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = chunked()
    everything = frozenset(range(cut.chunks_total))
    half = HalfCached(HEADER + 10 * CHUNK)
    monkeypatch.setattr(ring_steps, "are_resident", half.are_resident)
    files: list[native.File] = []
    assert find_cold(cut, files, "auto") == frozenset(range(10, cut.chunks_total))
    assert half.asked == 2 * cut.chunks_total
    assert find_cold(cut, files, "direct") == everything
    assert find_cold(cut, files, "buffered") == frozenset()
    assert find_cold(cut, files, "cufile") == frozenset()


@pytest.mark.parametrize("cached", [0, 1 << 40])
def test_a_file_that_is_all_of_one_kind_is_asked_about_in_a_few_places(
    cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(file=0, file_offset=HEADER, size_bytes=1000 * CHUNK, image_offset=0)
    cut = cut_image(Image(size_bytes=1000 * CHUNK, offsets=(), runs=(run,)), CHUNK)
    file = HalfCached(cached)
    monkeypatch.setattr(ring_steps, "are_resident", file.are_resident)
    cold = find_cold(cut, [], "auto")
    assert len(cold) == (0 if cached else 1000)
    assert file.asked < 40


def test_an_image_of_nothing_has_nothing_cold(file: native.File) -> None:
    assert (
        find_cold(ChunkedImage(Image(size_bytes=0, offsets=(), runs=()), CHUNK, []), [file], "auto")
        == frozenset()
    )


def test_chunks_of_several_targets_take_turns() -> None:
    first, second = Moves([(0, 0, 1, 0)], []), Moves([], [(1, 0, 2, 1, 0)])
    both = Moves([(1, 0, 1, 0)], [(0, 0, 2, 1, 0)])
    moves = [first, first, both, first, second, second, NO_MOVES]
    assert take_turns([0, 1, 2, 3, 4, 5], moves) == [0, 4, 1, 5, 2, 3]
    assert take_turns([5, 4], moves) == [5, 4]
    assert take_turns([3, 0, 2], moves) == [3, 0, 2]
    assert take_turns([6], moves) == [6]
    assert take_turns([], moves) == []


def test_a_ring_brings_every_target_its_part_from_the_start(file: native.File) -> None:
    image = chunked()
    half = SIZE // 2 // CHUNK * CHUNK
    memory = native.HostBuffer(SIZE)
    pieces = [
        Piece(image_offset=0, size_bytes=half, arena_offset=0),
        Piece(image_offset=half, size_bytes=SIZE - half, arena_offset=half),
    ]
    targets = [
        Target(device=HOST_DEVICE, address=memory.address, pieces=(piece,)) for piece in pieces
    ]
    ring = native.HostBuffer(4 * CHUNK)
    slots = Ring(address=ring.address, slots=4, slot_bytes=CHUNK)
    plan = plan_ring(image, cut_targets(targets, image), slots, cold=frozenset())
    assert [copy[1] for copy in plan.copies[:6]] == [0, 1, 0, 1, 0, 1]
    run_plan(plan, [file], targets, mode="buffered", threads=2, control=native.Control())
    whole = (ctypes.c_char * SIZE).from_address(memory.address).raw
    assert whole == Path(file.path).read_bytes()[HEADER:]
