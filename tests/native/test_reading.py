"""Files to memory: one conformance suite for every reader mode.

In mode 'cufile' the memory is a GPU's; test_cufile.py runs these tests with a fake one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sllm_store import native

KIB, MIB = 1 << 10, 1 << 20
MODES = ["auto", "buffered", "direct", "io_uring", "cufile"]
GUARD = 4096


def is_supported(mode: str, directory: Path) -> bool:
    if mode == "cufile":
        return native.cufile_unavailable_reason() == ""
    found = native.probe(str(directory))
    if mode == "direct":
        return bool(found["direct_alignment"])
    return mode != "io_uring" or bool(found["io_uring"])


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    name: str = request.param
    if not is_supported(name, tmp_path):
        pytest.skip(f"{name} reads are not available in {tmp_path}")
    return name


class Target:
    """Memory at any alignment, between guards that must not change; a GPU's in mode 'cufile'."""

    def __init__(self, size: int, mode: str = "auto", *, skew: int = 0) -> None:
        self.size = size
        self.start = GUARD + skew
        self.host = native.HostBuffer(size + skew + 2 * GUARD)
        self.device: native.DeviceBuffer | None = None
        if mode == "cufile":
            self.device = native.DeviceBuffer(0, self.host.size)
        self._fill()

    def _fill(self) -> None:
        ctypes.memset(self.host.address, 0xA5, self.host.size)
        if self.device is not None:
            native.copy_to_device(0, self.host.address, self.device.address, self.host.size)

    @property
    def address(self) -> int:
        return self.host.address + self.start

    def peek(self, place: int, size: int) -> bytes:
        """Return a few of the bytes."""
        if self.device is None:
            return ctypes.string_at(self.address + place, size)
        found = ctypes.create_string_buffer(size)
        device_address = self.device.address + self.start + place
        native.copy_from_device(0, device_address, ctypes.addressof(found), size)
        return found.raw

    def content(self) -> bytes:
        whole = ctypes.string_at(self.host.address, self.host.size)
        if self.device is not None:
            assert set(whole) == {0xA5}, "the bytes came by way of the host"
            copy = native.HostBuffer(self.host.size)
            native.copy_from_device(0, self.device.address, copy.address, copy.size)
            whole = ctypes.string_at(copy.address, copy.size)
        assert set(whole[: self.start]) == {0xA5}
        assert set(whole[self.start + self.size :]) == {0xA5}
        return whole[self.start : self.start + self.size]


def write_file(path: Path, size: int, *, seed: int = 0) -> bytes:
    content = random.Random(seed).randbytes(size)
    path.write_bytes(content)
    os.sync()
    return content


def transfer(
    files: list[native.File],
    reads: list[tuple[int, int, int, int]],
    target: Target,
    *,
    mode: str,
    threads: int = 2,
    control: native.Control | None = None,
) -> native.TransferReport:
    """Read each (file, offset, size, place in the target)."""
    copies, devices = [], []
    if target.device is not None:
        copies = [(0, 0, target.start + place, size, place) for _, _, size, place in reads]
        devices = [(0, target.device.address)]
    return native.run_transfer(
        files,
        [(target.address, -1)],
        [(0, *read) for read in reads],
        copies,
        devices,
        mode=mode,
        threads=threads,
        control=control or native.Control(),
    )


def read(
    path: Path, mode: str, offset: int, target: Target, *, threads: int = 3
) -> native.TransferReport:
    file = native.File(str(path))
    return transfer([file], [(0, offset, target.size, 0)], target, mode=mode, threads=threads)


RANGES = [
    (0, 5 * MIB + 1234),
    (0, 4096),
    (0, 1),
    (1, 1),
    (511, 2),
    (4095, 4098),
    (4096, 3 * MIB),
    (4096 + 13, 2 * MIB + 17),
    (5 * MIB, 1234),
    (5 * MIB + 1233, 1),
    (2 * MIB - 1, 2),
    (100, 65 * KIB),
]


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("skew", [0, 13, 512])
def test_every_range_arrives_and_nothing_else_changes(
    tmp_path: Path, mode: str, skew: int, *, cached: bool
) -> None:
    path = tmp_path / "data"
    content = write_file(path, 5 * MIB + 1234)
    for offset, size in RANGES:
        if not cached:
            native.File(str(path)).evict()
        target = Target(size, mode, skew=skew)
        report = read(path, mode, offset, target)
        assert target.content() == content[offset : offset + size], (offset, size)
        assert report.bytes_direct + report.bytes_buffered == size
        assert report.bytes_copied == 0


def test_a_range_that_shares_the_file_s_alignment_needs_no_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "data"
    content = write_file(path, 3 * MIB)
    file = native.File(str(path))
    if not file.direct_alignment:
        pytest.skip("no direct reads here")
    file.evict()
    assert file.resident_bytes(0, file.size) == 0
    target = Target(3 * MIB - 100, skew=100)
    report = read(path, "auto", 100, target)
    assert target.content() == content[100:]
    assert (report.bytes_direct, report.bytes_buffered) == (3 * MIB - 100, 0)
    assert file.resident_bytes(0, file.size) == 0


def test_auto_takes_what_is_cached_from_the_cache_and_the_rest_from_the_disk(
    tmp_path: Path,
) -> None:
    path = tmp_path / "data"
    content = write_file(path, 16 * MIB)
    file = native.File(str(path))
    if not file.direct_alignment:
        pytest.skip("no direct reads here")
    file.evict()
    warm = native.HostBuffer(4 * MIB)
    file.read_into(4 * MIB, warm.address, 4 * MIB)
    target = Target(16 * MIB)
    report = read(path, "auto", 0, target)
    assert target.content() == content
    assert report.bytes_buffered >= 4 * MIB
    assert report.bytes_direct >= 8 * MIB


def test_many_small_reads_of_several_files_are_gathered(tmp_path: Path, mode: str) -> None:
    rng = random.Random(7)
    contents = [write_file(tmp_path / f"part-{i}", 700 * KIB + i, seed=i) for i in range(3)]
    files = [native.File(str(tmp_path / f"part-{i}")) for i in range(3)]
    target = Target(1 * MIB, mode)
    step_offsets = list(range(0, MIB, 4 * KIB))
    reads, expected = [], bytearray(b"\xa5" * MIB)
    for step_offset in step_offsets:
        index, size = rng.randrange(3), rng.randrange(4 * KIB)
        offset = rng.randrange(len(contents[index]) - size)
        reads.append((index, offset, size, step_offset))
        expected[step_offset : step_offset + size] = contents[index][offset : offset + size]
    for file in files:
        file.evict()
    transfer(files, reads, target, mode=mode, threads=4)
    assert target.content() == bytes(expected)


def test_an_empty_file_and_an_empty_request_are_fine(tmp_path: Path, mode: str) -> None:
    (tmp_path / "empty").touch()
    file = native.File(str(tmp_path / "empty"))
    assert file.size == 0
    for steps, reads in (([], []), ([(0, -1)], []), ([(0, -1), (0, 0)], [(1, 0, 0, 0, 0)])):
        control = native.Control()
        report = native.run_transfer(
            [file], steps, reads, [], [], mode=mode, threads=2, control=control
        )
        assert report.bytes_direct == report.bytes_buffered == control.bytes_done == 0


def test_a_range_beyond_the_end_names_the_file_and_the_sizes(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "short"
    write_file(path, 1000)
    with pytest.raises(native.NativeError) as caught:
        read(path, mode, 990, Target(11, mode))
    assert caught.value.errno == errno.EIO
    assert caught.value.filename == str(path)
    assert caught.value.strerror == "expected 11 bytes at offset 990, file has 1000"


@pytest.mark.parametrize("remaining", [0, 100, 4096, 3 * MIB, 6 * MIB - 1])
def test_a_file_truncated_after_it_was_opened_is_an_error(
    tmp_path: Path, mode: str, remaining: int
) -> None:
    path = tmp_path / "data"
    write_file(path, 6 * MIB)
    file = native.File(str(path))
    os.truncate(path, remaining)
    target = Target(6 * MIB, mode)
    with pytest.raises(native.NativeError, match=f"file has {remaining}") as caught:
        transfer([file], [(0, 0, 6 * MIB, 0)], target, mode=mode)
    assert caught.value.errno == errno.EIO
    assert caught.value.filename == str(path)


def test_an_error_of_a_read_is_raised_with_its_errno(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "data"
    write_file(path, 2 * MIB)
    file = native.File(str(path))
    target = Target(4096, mode)
    target.start += 1 << 44
    with pytest.raises(native.NativeError) as caught:
        transfer([file], [(0, 0, 2 * MIB, 0)], target, mode=mode)
    assert caught.value.errno == (errno.EIO if mode == "cufile" else errno.EFAULT)
    assert caught.value.filename == str(path)
    assert "at offset" in str(caught.value)


def test_forced_direct_reads_are_refused_where_there_are_none(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or is_supported("direct", memory):
        pytest.skip("no file system without direct reads at hand")
    path = memory / f"sllm-{os.getpid()}"
    try:
        content = write_file(path, 3 * MIB)
        with pytest.raises(native.NativeError, match="mode 'auto'") as caught:
            read(path, "direct", 0, Target(3 * MIB))
        assert caught.value.errno == errno.EOPNOTSUPP
        for mode in ("auto", "buffered", "io_uring"):
            if is_supported(mode, memory):
                target = Target(3 * MIB - 5, skew=3)
                read(path, mode, 5, target)
                assert target.content() == content[5:]
    finally:
        path.unlink()


def test_opening_what_is_no_data_file_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, code in (
        (tmp_path, errno.EISDIR),
        (tmp_path / "missing", errno.ENOENT),
        (tmp_path / "fifo", errno.EINVAL),
    ):
        with pytest.raises(native.NativeError) as caught:
            native.File(str(path))
        assert caught.value.errno == code
        assert caught.value.filename == str(path)


def test_read_into_reads_exactly_or_raises(tmp_path: Path) -> None:
    path = tmp_path / "data"
    content = write_file(path, 10000)
    file = native.File(str(path))
    assert (file.path, file.size) == (str(path), 10000)
    target = Target(100, skew=1)
    file.read_into(9900, target.address, 100)
    assert target.content() == content[9900:]
    with pytest.raises(native.NativeError, match="expected 100 bytes at offset 9901"):
        file.read_into(9901, target.address, 100)
    with pytest.raises(ValueError, match="negative"):
        file.read_into(-1, target.address, 1)
    with pytest.raises(ValueError, match="not memory"):
        file.read_into(0, 0, 1)


def test_resident_bytes_counts_within_the_file(tmp_path: Path) -> None:
    path = tmp_path / "data"
    write_file(path, MIB + 1)
    file = native.File(str(path))
    target = Target(MIB + 1)
    file.read_into(0, target.address, target.size)
    assert file.resident_bytes(0, 1 << 40) == MIB + 1
    assert file.resident_bytes(MIB, 1) == 1
    assert file.resident_bytes(0, 0) == 0
    assert file.resident_bytes(1 << 40, 5) == 0


@pytest.mark.parametrize("size", [0, 1, 5 * MIB + 3])
def test_checksums_are_those_of_the_bytes(tmp_path: Path, mode: str, size: int) -> None:
    path = tmp_path / "data"
    content = write_file(path, 5 * MIB + 3)
    file = native.File(str(path))
    file.evict()
    ranges = [(0, size), (0, 0), (7, min(size, 100)), (3 * MIB - 1, min(size, 2 * MIB))]
    control = native.Control()
    found = native.checksum_ranges(file, ranges, mode=mode, threads=3, control=control)
    memory = ctypes.create_string_buffer(content, len(content))
    address = ctypes.addressof(memory)
    assert found == [native.crc32c(address + offset, length) for offset, length in ranges]
    assert control.bytes_done == sum(length for _, length in ranges)


def test_checksums_refuse_bad_ranges(tmp_path: Path) -> None:
    path = tmp_path / "data"
    write_file(path, 100)
    file = native.File(str(path))
    options = {"mode": "auto", "threads": 1}
    control = native.Control()
    with pytest.raises(native.NativeError, match="expected 2 bytes at offset 99, file has 100"):
        native.checksum_ranges(file, [(99, 2)], **options, control=control)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="range 0"):
        native.checksum_ranges(file, [(-1, 2)], **options, control=control)  # type: ignore[arg-type]
    control.cancel()
    with pytest.raises(native.Cancelled):
        native.checksum_ranges(file, [(0, 2)], **options, control=control)  # type: ignore[arg-type]


def test_crc32c_matches_its_test_vectors() -> None:
    for text, expected in ((b"123456789", 0xE3069283), (b"\0" * 32, 0x8A9136AA), (b"", 0)):
        memory = ctypes.create_string_buffer(text, max(len(text), 1))
        assert native.crc32c(ctypes.addressof(memory), len(text)) == expected


def test_progress_wakes_who_waits_for_it(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "data"
    write_file(path, 8 * MIB)
    control = native.Control()
    seen: list[int] = []

    def watch() -> None:
        while not seen or seen[-1] < 8 * MIB:
            seen.append(control.wait(seen[-1] if seen else 0, 30.0))

    thread = threading.Thread(target=watch)
    thread.start()
    files = [native.File(str(path))]
    transfer(files, [(0, 0, 8 * MIB, 0)], Target(8 * MIB, mode), mode=mode, control=control)
    thread.join()
    assert seen == sorted(set(seen))
    assert seen[-1] == control.bytes_done == 8 * MIB


def test_a_wait_ends_after_its_timeout() -> None:
    control = native.Control()
    assert control.wait(0, 0.01) == 0
    assert control.wait(-1, 10.0) == 0
    with pytest.raises(ValueError, match="timeout_s"):
        control.wait(0, -1.0)
    with pytest.raises(ValueError, match="timeout_s"):
        control.wait(0, float("nan"))


def test_a_cancelled_control_stops_every_call(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "data"
    write_file(path, MIB)
    control = native.Control()
    states = [control.cancelled]
    for _ in range(2):
        control.cancel()
        states.append(control.cancelled)
    assert states == [False, True, True]
    target = Target(MIB, mode)
    files = [native.File(str(path))]
    with pytest.raises(native.Cancelled):
        transfer(files, [(0, 0, MIB, 0)], target, mode=mode, control=control)
    assert set(target.content()) == {0xA5}


def test_parallel_transfers_of_one_file_do_not_disturb_each_other(
    tmp_path: Path, mode: str
) -> None:
    path = tmp_path / "data"
    content = write_file(path, 3 * MIB)

    def load(index: int) -> bool:
        target = Target(2 * MIB, mode, skew=index)
        read(path, mode, index * 1000, target, threads=4)
        return target.content() == content[index * 1000 :][: 2 * MIB]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(load, range(24)))


@pytest.mark.slow
def test_a_range_of_more_than_two_gib_arrives(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "sparse"
    size = (2 << 30) + 5 * MIB + 1
    marks = [0, (1 << 31) - 1, 1 << 31, size - 1]
    with path.open("wb") as file:
        file.truncate(size)
        for mark in marks:
            file.seek(mark)
            file.write(b"\x77")
    target = Target(size, mode)
    transfer([native.File(str(path))], [(0, 0, size, 0)], target, mode=mode)
    assert [target.peek(mark, 1) for mark in marks] == [b"\x77"] * 4
    assert target.peek(1, 100) == bytes(100)


def test_ranges_are_resident_where_half_of_their_bytes_are(tmp_path: Path) -> None:
    path = tmp_path / "data"
    write_file(path, 4 * MIB)
    file = native.File(str(path))
    file.evict()
    target = Target(MIB)
    file.read_into(MIB, target.address, MIB)
    ranges = [(0, offset, 64 << 10) for offset in range(0, 4 * MIB, 256 << 10)]
    plain = [2 * file.resident_bytes(offset, size) >= size for _, offset, size in ranges]
    assert native.are_resident([file], ranges) == plain
    assert any(plain)
    assert native.are_resident([file], []) == []
    for number in (-1, 1):
        with pytest.raises((ValueError, IndexError)):
            native.are_resident([file], [(number, 0, 1)])
