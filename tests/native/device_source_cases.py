"""What test_device_sources.py runs: transfers whose bytes are in device memory already."""

from __future__ import annotations

import ctypes
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from sllm_store import native

MIB = 1 << 20


def fake() -> Any:
    return ctypes.CDLL(os.environ["SLLM_CUDA_LIBRARY"])


def arena_with(device: int, content: bytes) -> native.DeviceBuffer:
    arena = native.DeviceBuffer(device, len(content))
    host = ctypes.create_string_buffer(content, len(content))
    native.copy_to_device(device, ctypes.addressof(host), arena.address, len(content))
    return arena


def device_bytes(arena: native.DeviceBuffer) -> bytes:
    host = ctypes.create_string_buffer(arena.size)
    native.copy_from_device(arena.device, arena.address, ctypes.addressof(host), arena.size)
    return host.raw


def copy(source: native.DeviceBuffer, *targets: native.DeviceBuffer) -> native.TransferReport:
    """Copy an arena to others, in steps of a megabyte."""
    size = source.size
    steps = [(source.address + at, -1) for at in range(0, size, MIB)]
    copies = [
        (step, device, at, min(MIB, size - at), 0)
        for step, at in enumerate(range(0, size, MIB))
        for device in range(len(targets))
    ]
    return native.run_transfer(
        [],
        steps,
        [],
        copies,
        [(target.device, target.address) for target in targets],
        mode="auto",
        threads=3,
        control=native.Control(),
    )


def an_arena_is_copied_within_and_across_devices(_: Path) -> None:
    content = random.Random(1).randbytes(5 * MIB + 77)
    source = arena_with(0, content)
    targets = [native.DeviceBuffer(device, len(content)) for device in (0, 1)]
    report = copy(source, *targets)
    assert report.bytes_copied == 2 * len(content)
    assert [device_bytes(target) for target in targets] == [content, content]
    assert fake().fake_cuda_peer_enabled(1, 0) == int(os.environ.get("FAKE_CUDA_PEERS", "1"))
    assert fake().fake_cuda_live_streams() == fake().fake_cuda_live_events() == 0


def host_and_device_sources_mix(directory: Path) -> None:
    content = random.Random(2).randbytes(3 * MIB)
    (directory / "data").write_bytes(content)
    host = native.HostBuffer(MIB, pinned=True)
    ctypes.memmove(host.address, content, MIB)
    ring = native.HostBuffer(MIB)
    resident = arena_with(1, content[MIB : 2 * MIB])
    target = native.DeviceBuffer(0, len(content))
    native.run_transfer(
        [native.File(str(directory / "data"))],
        [(host.address, -1), (resident.address, 0), (ring.address, -1)],
        [(2, 0, 2 * MIB, MIB, 0)],
        [(step, 0, step * MIB, MIB, 0) for step in range(3)],
        [(0, target.address)],
        mode="auto",
        threads=2,
        control=native.Control(),
    )
    assert device_bytes(target) == content


def device_memory_is_neither_decoded_nor_copied_to_the_host(_: Path) -> None:
    source = arena_with(0, bytes(MIB))
    host = native.HostBuffer(MIB)
    for decodes, copies in (
        ([], [(0, 0, 0, MIB, 0), (0, 1, 0, MIB, 0)]),
        ([(0, 0, 0, 1000, 900, 0)], []),
    ):
        with pytest.raises(ValueError, match="step 0: its buffer is device memory"):
            native.run_transfer(
                [],
                [(source.address, -1)],
                [],
                copies,
                [(0, source.address), (-1, host.address)],
                decodes=decodes,
                mode="auto",
                threads=2,
                control=native.Control(),
            )
    assert fake().fake_cuda_live_streams() == fake().fake_cuda_live_events() == 0


def a_failing_copy_fails_the_transfer(_: Path) -> None:
    source = arena_with(0, bytes(4 * MIB))
    target = native.DeviceBuffer(1, 4 * MIB)
    with pytest.raises(native.CudaError) as caught:
        copy(source, target)
    assert caught.value.args[1] == 999
    assert fake().fake_cuda_live_streams() == fake().fake_cuda_live_events() == 0


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
