"""The native queue of reads: bytes where they belong, in one order or another, and its errors."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import torch
from torch.utils.dlpack import from_dlpack

from sllm_store import native

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 6 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(random.Random(0).randbytes(SIZE + 1234))
    return path


def _open(*paths: Path, in_turns: bool = True) -> native.ReadQueue:
    try:
        return native.ReadQueue([native.File(str(path)) for path in paths], in_turns=in_turns)
    except native.NativeError:
        pytest.skip("this kernel has no io_uring")


def _bytes(buffer: native.HostBuffer, place: int, size: int) -> bytes:
    return bytes(from_dlpack(buffer)[place : place + size].to(torch.uint8).numpy())


@pytest.mark.parametrize("in_turns", [True, False])
@pytest.mark.parametrize("cold", [True, False])
def test_ranges_arrive_wherever_they_begin_and_end(
    path: Path, *, in_turns: bool, cold: bool
) -> None:
    data = path.read_bytes()
    if cold:
        native.File(str(path)).evict()
    queue = _open(path, in_turns=in_turns)
    buffer = native.HostBuffer(4 * SIZE)
    reads = [
        (0, 0, SIZE, 0),
        (0, 4096, 1 << 20, SIZE),
        (0, 5, 4097, 2 * SIZE),
        (0, SIZE, 1234, 2 * SIZE + 8192),
        (0, SIZE - 4096, 4096 + 1234, 3 * SIZE),
        (0, 77, 0, 3 * SIZE),
    ]
    numbers = [queue.begin([read], buffer) for read in reads[:3]]
    numbers.append(queue.begin(reads[3:], buffer))
    for number in reversed(numbers):
        assert queue.wait(number, 60)
    for _, offset, size, place in reads:
        assert _bytes(buffer, place, size) == data[offset : offset + size]


@pytest.mark.parametrize("in_turns", [True, False])
def test_more_reads_than_the_kernel_takes_at_once(path: Path, *, in_turns: bool) -> None:
    data = path.read_bytes()
    queue = _open(path, in_turns=in_turns)
    buffer = native.HostBuffer(SIZE)
    pages = list(range(SIZE // 4096))
    random.Random(1).shuffle(pages)
    number = queue.begin([(0, page * 4096, 4096, page * 4096) for page in pages], buffer)
    assert queue.wait(number, 60)
    assert _bytes(buffer, 0, SIZE) == data[:SIZE]


def test_a_buffer_lives_until_it_is_read(path: Path) -> None:
    queue = _open(path)
    for _ in range(8):
        queue.begin([(0, 0, SIZE, 0)], native.HostBuffer(SIZE))
    queue.drain()
    buffer = native.HostBuffer(SIZE)
    assert queue.wait(queue.begin([(0, 0, SIZE, 0)], buffer), 60)
    assert _bytes(buffer, 0, SIZE) == path.read_bytes()[:SIZE]


def test_places_are_counted_from_a_start(path: Path) -> None:
    queue = _open(path)
    buffer = native.HostBuffer(1 << 20)
    assert queue.wait(queue.begin([(0, 8192, 5000, 4096)], buffer, 12288), 60)
    assert _bytes(buffer, 16384, 5000) == path.read_bytes()[8192 : 8192 + 5000]


def test_a_range_beyond_the_file_is_an_error_once(path: Path) -> None:
    queue = _open(path)
    number = queue.begin([(0, 0, SIZE + 8192, 0)], native.HostBuffer(2 * SIZE))
    with pytest.raises(native.NativeError, match="expected") as caught:
        queue.wait(number, 60)
    assert caught.value.filename == str(path)
    with pytest.raises(ValueError, match="no read has the number"):
        queue.wait(number, 60)


def test_a_deadline_that_is_over_is_not_waited_for(path: Path) -> None:
    queue = _open(path)
    number = queue.begin([(0, 0, SIZE, 0)] * 4, native.HostBuffer(SIZE))
    while not queue.wait(number, 0):
        pass


@pytest.mark.parametrize(
    ("read", "message"),
    [
        ((1, 0, 4096, 0), "no file 1"),
        ((0, 0, 8192, 0), "does not fit"),
        ((0, 0, 4096, 4096), "does not fit"),
        ((0, 0, -1, 0), "negative"),
    ],
)
def test_a_read_that_fits_nowhere_is_refused(
    path: Path, read: tuple[int, int, int, int], message: str
) -> None:
    queue = _open(path)
    with pytest.raises(ValueError, match=message):
        queue.begin([read], native.HostBuffer(4096))
