"""What test_codec_device.py runs: segments decoded in device memory, with the fake driver."""

from __future__ import annotations

import ctypes
import errno
import sys
from pathlib import Path

import pytest

from sllm_store import native
from tests.native.segments import bfloat16, coded

Job = tuple[int, int, int, int]


def arena_with(device: int, content: bytes) -> native.DeviceBuffer:
    arena = native.DeviceBuffer(device, len(content))
    host = ctypes.create_string_buffer(content, len(content))
    native.copy_to_device(device, ctypes.addressof(host), arena.address, len(content))
    return arena


def content_of(arena: native.DeviceBuffer) -> bytes:
    host = ctypes.create_string_buffer(arena.size)
    native.copy_from_device(arena.device, arena.address, ctypes.addressof(host), arena.size)
    return host.raw


def more_segments_than_a_launch_takes_are_decoded(_: Path) -> None:
    raw = bfloat16(9000, 1)
    stored = coded(raw)
    for device, count in ((0, 0), (0, 1), (1, 160), (1, 401)):
        source = arena_with(device, stored)
        slot = 9008
        target = arena_with(device, b"\xee" * (slot * max(count, 1)))
        jobs = [
            (source.address, len(stored), target.address + slot * i, len(raw)) for i in range(count)
        ]
        native.decode_segments_on_device(device, jobs)
        expected = (raw + b"\xee" * 8) * count if count else b"\xee" * slot
        assert content_of(target) == expected


def a_corrupt_segment_is_an_error(_: Path) -> None:
    raw = bfloat16(9000, 1)
    stored = coded(raw)
    source = arena_with(0, stored)
    target = native.DeviceBuffer(0, 16384)
    good = (source.address, len(stored), target.address, len(raw))
    bad = (source.address, len(stored), target.address, len(raw) - 1)
    for jobs in ([bad], [good, bad], [bad, good]):
        with pytest.raises(native.NativeError, match="device 0 is corrupt") as caught:
            native.decode_segments_on_device(0, jobs)
        assert caught.value.errno == errno.EBADMSG
    native.decode_segments_on_device(0, [good])


def arguments_that_make_no_sense_are_refused(_: Path) -> None:
    memory = native.DeviceBuffer(0, 16384)
    wrong: list[Job] = [
        (memory.address + 8, 1000, memory.address, 100),
        (memory.address, 1000, memory.address + 2, 100),
        (memory.address, -1, memory.address, 100),
        (memory.address, 1 << 32, memory.address, 100),
    ]
    for job in wrong:
        with pytest.raises(ValueError, match=r"multiple of 16|negative|no segment"):
            native.decode_segments_on_device(0, [job])
    with pytest.raises(native.CudaError, match="no device 7"):
        native.decode_segments_on_device(7, [])


def a_failing_driver_fails_the_call(_: Path) -> None:
    stored = coded(bfloat16(9000, 1))
    source, target = arena_with(0, stored), native.DeviceBuffer(0, 16384)
    with pytest.raises(native.CudaError):
        native.decode_segments_on_device(0, [(source.address, len(stored), target.address, 9000)])


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
