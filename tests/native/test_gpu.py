"""The same contracts as test_cuda.py, held by a real driver."""

from __future__ import annotations

import ctypes
import gc
import random
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sllm_store import native

if TYPE_CHECKING:
    from pathlib import Path

torch = pytest.importorskip("torch")

MIB = 1 << 20

pytestmark = [
    pytest.mark.gpu,
    # Asks torch: a process loads one driver for good, and other tests may mean another one.
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def load(path: Path, arena: native.DeviceBuffer, *, pinned: bool) -> native.TransferReport:
    """Stream a file through a ring of three slots."""
    chunk, slots = 4 * MIB, 3
    ring = native.HostBuffer(slots * chunk, pinned=pinned)
    file = native.File(str(path))
    steps, reads, copies = [], [], []
    for step, offset in enumerate(range(0, file.size, chunk)):
        length = min(chunk, file.size - offset)
        steps.append((ring.address + step % slots * chunk, step - slots if step >= slots else -1))
        reads.append((step, 0, offset, length, 0))
        copies.append((step, 0, offset, length, 0))
    return native.run_transfer(
        [file],
        steps,
        reads,
        copies,
        [(arena.device, arena.address)],
        mode="auto",
        threads=8,
        control=native.Control(),
    )


@pytest.mark.parametrize("pinned", [True, False])
def test_a_file_streams_to_the_device(tmp_path: Path, *, pinned: bool) -> None:
    content = random.Random(1).randbytes(64 * MIB + 77)
    (tmp_path / "data").write_bytes(content)
    arena = native.DeviceBuffer(0, len(content))
    report = load(tmp_path / "data", arena, pinned=pinned)
    assert report.bytes_copied == len(content)
    tensor = torch.from_dlpack(arena)
    assert (tensor.device.type, tensor.dtype, tensor.numel()) == ("cuda", torch.uint8, len(content))
    del arena
    assert bytes(tensor.cpu().numpy()) == content


def test_memory_is_freed_with_its_last_view() -> None:
    size = 512 * MIB
    native.device_memory(0)
    before, _ = native.device_memory(0)
    arena = native.DeviceBuffer(0, size)
    view = torch.from_dlpack(arena)[7:].view(torch.int8)
    del arena
    gc.collect()
    assert native.device_memory(0)[0] <= before - size
    del view
    gc.collect()
    assert native.device_memory(0)[0] >= before - size // 2


def test_too_much_memory_is_code_2() -> None:
    with pytest.raises(native.CudaError) as caught:
        native.DeviceBuffer(0, 1 << 44)
    assert caught.value.args[1] == 2


def test_the_framework_s_device_stays_current() -> None:
    last = torch.cuda.device_count() - 1
    torch.cuda.set_device(0)
    native.device_memory(last)
    arena = native.DeviceBuffer(last, MIB)
    assert torch.cuda.current_device() == 0
    assert torch.from_dlpack(arena).device.index == last
    assert native.device_uuid(last) == str(torch.cuda.get_device_properties(last).uuid)


CLIENT = """
import ctypes, sys
from sllm_store import native
handle = bytes.fromhex(sys.argv[1])
first = native.DeviceMapping(0, handle)
second = native.DeviceMapping(0, handle)
assert first.address == second.address
assert first.size >= int(sys.argv[2])
del first
host = ctypes.create_string_buffer(int(sys.argv[2]))
native.copy_from_device(0, second.address, ctypes.addressof(host), len(host))
print(native.crc32c(ctypes.addressof(host), len(host)))
"""


def test_ipc_connects_two_processes() -> None:
    size = 3 * MIB + 5
    host = ctypes.create_string_buffer(random.Random(2).randbytes(size), size)
    arena = native.DeviceBuffer(0, size)
    native.copy_to_device(0, ctypes.addressof(host), arena.address, size)
    handle = arena.ipc_handle()
    assert handle == arena.ipc_handle()
    with pytest.raises(native.CudaError, match="this process exported"):
        native.DeviceMapping(0, handle)
    child = subprocess.run(
        [sys.executable, "-c", CLIENT, handle.hex(), str(size)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip() == str(native.crc32c(ctypes.addressof(host), size))
    with pytest.raises(native.CudaError):
        native.DeviceMapping(0, bytes(64))


def test_a_pool_is_pinned_and_copied_from() -> None:
    pool = native.SharedPool(8 * MIB)
    pool.pin()
    ctypes.memset(pool.address, 0x3C, pool.size)
    arena = native.DeviceBuffer(0, pool.size)
    native.run_transfer(
        [],
        [(pool.address, -1)],
        [],
        [(0, 0, 0, pool.size, 0)],
        [(0, arena.address)],
        mode="auto",
        threads=1,
        control=native.Control(),
    )
    assert int(torch.from_dlpack(arena).to(torch.int64).sum()) == 0x3C * pool.size
