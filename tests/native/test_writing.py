"""Memory to files: exact bytes, exact lengths, explicit errors."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sllm_store import native

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20


class Source:
    """Random bytes with an address."""

    def __init__(self, size: int) -> None:
        self.content = random.Random(size).randbytes(size)
        self._memory = ctypes.create_string_buffer(self.content, size)
        self.address = ctypes.addressof(self._memory)

    def crc32c(self, start: int, size: int) -> int:
        return native.crc32c(self.address + start, size)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(
    "calls",
    [
        [[(0, 10)]],
        [[(0, 4 * MIB)]],
        [[(0, 4 * MIB + 1)]],
        [[(0, 9 * MIB + 77)]],
        [[(0, 1), (1, 1), (2, 4096), (5000, 3)]],
        [[(0, 3 * MIB)], [(3 * MIB, 3 * MIB)], [(6 * MIB + 1, 5)]],
        [[(100, 1)], [(200, 1)], [(300, 8 * MIB)]],
        [[(5 * MIB, 10)], [(20 * MIB, 10)], [], [(20 * MIB + 11, 0)]],
        [[(0, 10), (13 * MIB + 5, 4 * MIB)]],
        [[(i * 1000, 999)] for i in range(50)],
    ],
    ids=lambda calls: f"{len(calls)}-calls-{calls[0][0]}",
)
def test_what_is_written_is_read_back(
    tmp_path: Path, calls: list[list[tuple[int, int]]], threads: int, *, direct: bool
) -> None:
    source = Source(13 * MIB)
    path = tmp_path / "out"
    writer = native.FileWriter(str(path), threads=threads, direct=direct)
    end = max(offset + size for call in calls for offset, size in call)
    expected = bytearray(end + 123)
    control = native.Control()
    for call in calls:
        pieces = [(offset, source.address + i, size) for i, (offset, size) in enumerate(call)]
        crcs = writer.write(pieces, control)
        assert crcs == [source.crc32c(i, size) for i, (_, size) in enumerate(call)]
        for i, (offset, size) in enumerate(call):
            expected[offset : offset + size] = source.content[i : i + size]
    writer.finish(end + 123)
    assert path.read_bytes() == bytes(expected)
    assert control.bytes_done == sum(size for call in calls for _, size in call)
    assert path.stat().st_mode & 0o777 == 0o644 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    ("queued", "setting"),
    [
        (True, (1, 1, 2 * MIB)),
        (True, (1, 2, 128 << 10)),
        (True, (1, 256, 256 << 10)),
        (False, (4, 4, 1 * MIB)),
    ],
)
def test_every_setting_of_the_disk_writes_the_same_bytes(
    tmp_path: Path, setting: tuple[int, int, int], *, queued: bool
) -> None:
    source = Source(43 * MIB + 5)
    tuner = native.Tuner(queued=queued, start=setting)
    writer = native.FileWriter(str(tmp_path / "out"), threads=3, direct=True, tuner=tuner)
    control = native.Control()
    middle = 21 * MIB + 77
    crcs = writer.write([(0, source.address, middle)], control)
    crcs += writer.write([(middle, source.address + middle, len(source.content) - middle)], control)
    writer.finish(len(source.content))
    assert (tmp_path / "out").read_bytes() == source.content
    assert crcs == [
        source.crc32c(0, middle),
        source.crc32c(middle, len(source.content) - middle),
    ]


def test_an_empty_file_can_be_written(tmp_path: Path) -> None:
    writer = native.FileWriter(str(tmp_path / "out"), threads=2, direct=True)
    assert writer.write([], native.Control()) == []
    writer.finish(0)
    assert (tmp_path / "out").read_bytes() == b""


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("mine")
    with pytest.raises(native.NativeError) as caught:
        native.FileWriter(str(path), threads=1, direct=True)
    assert caught.value.errno == errno.EEXIST
    assert caught.value.filename == str(path)
    assert path.read_text() == "mine"


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "out"
    with pytest.raises(native.NativeError) as caught:
        native.FileWriter(str(path), threads=1, direct=True)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(path))


def test_pieces_must_ascend_over_all_calls(tmp_path: Path) -> None:
    source = Source(100)
    writer = native.FileWriter(str(tmp_path / "out"), threads=1, direct=True)
    control = native.Control()
    with pytest.raises(ValueError, match="piece 1: offset 9 is before the end"):
        writer.write([(0, source.address, 10), (9, source.address, 10)], control)
    writer.write([(0, source.address, 10)], control)
    with pytest.raises(ValueError, match="piece 0: offset 9 is before the end"):
        writer.write([(9, source.address, 10)], control)
    for piece in ((-1, source.address, 1), (10, source.address, -1), (10, -1, 1), (10, 0, 1)):
        with pytest.raises(ValueError, match="piece 0"):
            writer.write([piece], control)
    with pytest.raises(ValueError, match="less than what was written, 10"):
        writer.finish(9)
    writer.finish(10)
    assert (tmp_path / "out").read_bytes() == source.content[:10]


def test_a_closed_writer_refuses_more(tmp_path: Path) -> None:
    source = Source(10)
    writer = native.FileWriter(str(tmp_path / "out"), threads=1, direct=True)
    writer.finish(0)
    with pytest.raises(ValueError, match="is closed"):
        writer.write([(0, source.address, 10)], native.Control())
    with pytest.raises(ValueError, match="is closed"):
        writer.finish(0)
    writer.abort()


def test_abort_closes_and_writes_no_more(tmp_path: Path) -> None:
    source = Source(10)
    before = len(list(Path("/proc/self/fd").iterdir()))
    writer = native.FileWriter(str(tmp_path / "out"), threads=1, direct=True)
    writer.write([(0, source.address, 10)], native.Control())
    writer.abort()
    writer.abort()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    with pytest.raises(ValueError, match="is closed"):
        writer.finish(10)


@pytest.mark.parametrize("threads", [0, 65])
def test_the_number_of_threads_is_checked(tmp_path: Path, threads: int) -> None:
    with pytest.raises(ValueError, match="threads"):
        native.FileWriter(str(tmp_path / "out"), threads=threads, direct=False)
    assert not (tmp_path / "out").exists()


def test_a_cancelled_write_raises(tmp_path: Path) -> None:
    source = Source(10)
    control = native.Control()
    control.cancel()
    writer = native.FileWriter(str(tmp_path / "out"), threads=1, direct=True)
    with pytest.raises(native.Cancelled):
        writer.write([(0, source.address, 10)], control)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(directory)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("mounting needs root")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.parametrize("direct", [True, False])
def test_a_full_disk_is_enospc_with_the_path(small_disk: Path, *, direct: bool) -> None:
    source = Source(13 * MIB)
    path = small_disk / "out"
    writer = native.FileWriter(str(path), threads=2, direct=direct)
    with pytest.raises(native.NativeError) as caught:
        writer.write([(0, source.address, 13 * MIB)], native.Control())
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    with pytest.raises(ValueError, match="has failed before"):
        writer.write([(20 * MIB, source.address, 1)], native.Control())
    with pytest.raises(ValueError, match="has failed before"):
        writer.finish(20 * MIB)
    writer.abort()


def test_a_file_size_limit_is_an_error_and_no_signal(tmp_path: Path) -> None:
    code = (
        "import ctypes, errno, sys\n"
        "from sllm_store import native\n"
        "memory = native.HostBuffer(8 << 20)\n"
        "writer = native.FileWriter(sys.argv[1], threads=2, direct=True)\n"
        "try:\n"
        "    writer.write([(0, memory.address, memory.size)], native.Control())\n"
        "except native.NativeError as error:\n"
        "    assert error.errno == errno.EFBIG, error\n"
        "    assert error.filename == sys.argv[1]\n"
        "else:\n"
        "    raise AssertionError\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        check=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5 * MIB, 5 * MIB)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("direct", [True, False])
def test_a_piece_of_more_than_two_gib_is_written(tmp_path: Path, *, direct: bool) -> None:
    size = (2 << 30) + 3 * MIB + 1
    buffer = native.HostBuffer(size)
    marks = [0, (1 << 31) - 1, 1 << 31, size - 1]
    for mark in marks:
        ctypes.memset(buffer.address + mark, 0x5C, 1)
    path = tmp_path / "out"
    writer = native.FileWriter(str(path), threads=2, direct=direct)
    crcs = writer.write([(0, buffer.address, size)], native.Control())
    writer.finish(size)
    assert crcs == [native.crc32c(buffer.address, size)]
    file = native.File(str(path))
    assert file.size == size
    options = {"mode": "auto", "threads": 2}
    control = native.Control()
    found = native.checksum_ranges(file, [(0, size)], **options, control=control)  # type: ignore[arg-type]
    assert found == crcs
    path.unlink()
