"""Host memory: buffers, shared pools and the views that keep them alive."""

from __future__ import annotations

import ctypes
import errno
import gc
import itertools
import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sllm_store import native

pytestmark = pytest.mark.usefixtures("small_heap")

PAGE = 4096
MIB = 1 << 20

torch = pytest.importorskip("torch")


def mapped(address: int) -> bool:
    """Whether this process maps the page at an address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return True
    return False


@pytest.fixture
def pool() -> native.SharedPool:
    pool = native.SharedPool(8 * PAGE)
    for chunk in range(8):
        ctypes.memset(pool.address + chunk * PAGE, chunk + 1, PAGE)
    return pool


def view_of(pool: native.SharedPool, chunks: list[int], size: int) -> native.PoolMapping:
    fd = pool.read_only_fd()
    try:
        return native.PoolMapping(fd, PAGE, chunks, size)
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [1, PAGE, 5 * MIB + 3])
def test_a_buffer_is_zeroed_writable_and_aligned(size: int) -> None:
    buffer = native.HostBuffer(size)
    buffer.populate(2)
    assert buffer.size == size
    assert buffer.address % PAGE == 0
    assert buffer.__dlpack_device__() == (1, 0)
    tensor = torch.from_dlpack(buffer)
    assert tensor.dtype == torch.uint8
    assert tensor.shape == (size,)
    assert tensor.data_ptr() == buffer.address
    assert int(tensor.sum()) == 0
    tensor.fill_(3)
    buffer.populate(2)
    assert ctypes.string_at(buffer.address, size) == b"\x03" * size


@pytest.mark.parametrize("make", [native.HostBuffer, native.SharedPool])
@pytest.mark.parametrize("size", [0, -1, 1 << 62])
def test_a_size_that_cannot_be_is_refused(make: Any, size: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        make(size)


def test_more_memory_than_address_space_is_an_error() -> None:
    with pytest.raises(native.NativeError) as caught:
        native.HostBuffer(1 << 46)
    assert caught.value.errno == errno.ENOMEM


def test_numpy_reads_the_same_memory() -> None:
    buffer = native.HostBuffer(100)
    ctypes.memset(buffer.address, 9, 100)
    array = np.from_dlpack(buffer)
    assert array.tolist() == [9] * 100


def owners(pool: native.SharedPool) -> list[native.HostBuffer | native.PoolMapping]:
    return [native.HostBuffer(3 * PAGE), view_of(pool, [3, 4, 5], 3 * PAGE)]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_memory_lives_as_long_as_its_last_view(
    pool: native.SharedPool, which: int, order: tuple[int, ...]
) -> None:
    owner = owners(pool)[which]
    address = owner.address
    tensor = torch.from_dlpack(owner)
    holders: list[Any] = [owner, tensor, tensor[5:].view(torch.int8), owner.__dlpack__()]
    del owner, tensor
    for position, index in enumerate(order):
        assert mapped(address), f"unmapped with {len(order) - position} holders left"
        holders[index] = None
        gc.collect()
    assert not mapped(address)


def test_a_view_may_die_in_another_thread(pool: native.SharedPool) -> None:
    mapping = view_of(pool, [1], PAGE)
    address = mapping.address
    tensors = [torch.from_dlpack(mapping)]
    del mapping
    thread = threading.Thread(target=tensors.clear)
    thread.start()
    thread.join()
    assert not mapped(address)


def test_the_pool_s_descriptor_is_read_only_for_ever(pool: native.SharedPool) -> None:
    fd = pool.read_only_fd()
    try:
        assert os.get_inheritable(fd) is False
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(fd, b"x")
        with pytest.raises(PermissionError):
            mmap.mmap(fd, PAGE, prot=mmap.PROT_WRITE | mmap.PROT_READ)
        with pytest.raises(OSError, match=r"Invalid argument|Operation not permitted"):
            os.ftruncate(fd, 0)
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        try:
            with pytest.raises(PermissionError):
                os.write(again, b"x")
            with pytest.raises(PermissionError):
                mmap.mmap(again, PAGE, prot=mmap.PROT_WRITE | mmap.PROT_READ)
            with pytest.raises(PermissionError):
                os.ftruncate(again, 0)
        finally:
            os.close(again)
        assert os.pread(fd, 1, 0) == b"\x01"
    finally:
        os.close(fd)


def test_chunks_appear_in_their_order(pool: native.SharedPool) -> None:
    mapping = view_of(pool, [6, 0, 1, 2, 7, 7], 5 * PAGE + 10)
    assert mapping.size == 5 * PAGE + 10
    content = ctypes.string_at(mapping.address, mapping.size)
    expected = b"".join(bytes([chunk + 1]) * PAGE for chunk in (6, 0, 1, 2, 7)) + b"\x08" * 10
    assert content == expected


def test_a_mapping_outlives_the_pool_and_sees_its_bytes(pool: native.SharedPool) -> None:
    mapping = view_of(pool, [2], PAGE)
    del pool
    assert ctypes.string_at(mapping.address, 3) == b"\x03\x03\x03"


def test_another_process_writes_to_its_own_copy(pool: native.SharedPool) -> None:
    code = (
        "import ctypes, sys\n"
        "from sllm_store import native\n"
        "mapping = native.PoolMapping(int(sys.argv[1]), 4096, [1, 2, 5], 3 * 4096)\n"
        "assert ctypes.string_at(mapping.address + 8191, 2) == bytes([3, 6])\n"
        "ctypes.memset(mapping.address, 255, mapping.size)\n"
        "assert ctypes.string_at(mapping.address, mapping.size) == b'\\xff' * 3 * 4096\n"
    )
    fd = pool.read_only_fd()
    try:
        subprocess.run([sys.executable, "-c", code, str(fd)], check=True, timeout=60, pass_fds=[fd])
    finally:
        os.close(fd)
    for chunk in range(8):
        assert ctypes.string_at(pool.address + chunk * PAGE, PAGE) == bytes([chunk + 1]) * PAGE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PAGE, [8], 1), "there is no chunk 8 among 8"),
        ((PAGE, [-1], 1), "there is no chunk -1"),
        ((PAGE, [0], PAGE + 1), "does not fit 1 chunks"),
        ((PAGE, [], 0), "does not fit 0 chunks"),
        ((PAGE, [0], -1), "does not fit"),
        ((PAGE, [0] * 100, PAGE), "does not fit"),
        ((100, [0], 1), "not a multiple of the page size"),
        ((0, [0], 1), "not a multiple"),
        ((-PAGE, [0], 1), "not a multiple"),
        ((1 << 62, [0], 1), "there is no chunk 0 among 0"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(
    pool: native.SharedPool, arguments: tuple[int, list[int], int], message: str
) -> None:
    fd = pool.read_only_fd()
    try:
        with pytest.raises(ValueError, match=message):
            native.PoolMapping(fd, *arguments)
    finally:
        os.close(fd)


def test_memory_that_could_shrink_is_refused(tmp_path: Path) -> None:
    fd = os.memfd_create("unsealed")
    os.ftruncate(fd, 4 * PAGE)
    try:
        with pytest.raises(native.NativeError, match="could shrink"):
            native.PoolMapping(fd, PAGE, [0], PAGE)
    finally:
        os.close(fd)
    with (tmp_path / "file").open("w+b") as file:
        file.truncate(PAGE)
        with pytest.raises(native.NativeError, match="could shrink"):
            native.PoolMapping(file.fileno(), PAGE, [0], PAGE)
    with pytest.raises(native.NativeError) as caught:
        native.PoolMapping(-1, PAGE, [0], PAGE)
    assert caught.value.errno == errno.EBADF


def test_a_pool_is_populated_by_several_threads() -> None:
    pool = native.SharedPool(130 * MIB)
    pool.populate(3)
    assert not pool.pinned
    resident = int(Path("/proc/self/statm").read_text().split()[2]) * PAGE
    assert resident >= 130 * MIB
    with pytest.raises(ValueError, match="threads"):
        pool.populate(0)


def has_huge_shared_memory() -> bool:
    """Whether small pages of shared memory can be made huge ones here (Linux 6.1)."""
    pool = native.SharedPool(2 * MIB)
    ctypes.memset(pool.address, 0, PAGE)
    madvise = ctypes.CDLL(None).madvise
    collapse = 25
    return not madvise(ctypes.c_void_p(pool.address), ctypes.c_size_t(2 * MIB), collapse)


def test_a_populated_pool_has_huge_pages() -> None:
    if not has_huge_shared_memory():
        pytest.skip("this kernel has no huge pages for shared memory")
    pool = native.SharedPool(64 * MIB + PAGE)
    pool.populate(2)
    lines = Path("/proc/self/smaps").read_text().partition(f"{pool.address:x}-")[2].splitlines()
    found = next(line for line in lines if line.startswith("ShmemPmdMapped:"))
    # Memory that is in pieces does not always have one at once.
    assert int(found.split()[1]) >= 32 << 10


def test_probe_says_what_the_machine_allows(tmp_path: Path) -> None:
    found = native.probe(str(tmp_path))
    assert set(found) == {
        "io_uring",
        "io_uring_reason",
        "direct_alignment",
        "cachestat",
        "huge_pages",
        "kernel",
        "file_system",
    }
    assert bool(found["io_uring"]) == (found["io_uring_reason"] == "")
    assert found["kernel"] == os.uname().release
    (tmp_path / "data").write_bytes(b"x")
    assert native.File(str(tmp_path / "data")).direct_alignment == found["direct_alignment"]
    with pytest.raises(native.NativeError):
        native.probe(str(tmp_path / "missing"))
