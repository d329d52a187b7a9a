"""cuFile on a real GPU, in compatibility mode where there is no nvidia-fs: every byte arrives."""

from __future__ import annotations

import ctypes
import random
from typing import TYPE_CHECKING

import pytest
import torch

from sllm_store import native
from sllm_store.stream import load_checkpoint
from sllm_store.tiers.device import visible_gpus
from tests.store_process import random_tensors, write_upstream

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _require_cufile(tmp_path: Path) -> None:
    reason = native.cufile_unavailable_reason()
    if reason:
        pytest.skip(f"needs cuFile: {reason}")
    (tmp_path / "page").write_bytes(bytes(4096))
    try:
        read_to_device(tmp_path / "page", native.HostBuffer(4096))
    except native.NativeError as error:
        if "refused the file" in str(error):  # It asks udev about the disk, for one.
            pytest.skip(f"needs a file system that cuFile takes: {error}")
        raise


def device_bytes(arena: native.DeviceBuffer) -> bytes:
    host = native.HostBuffer(arena.size)
    native.copy_from_device(0, arena.address, host.address, arena.size)
    return ctypes.string_at(host.address, arena.size)


def read_to_device(
    path: Path, buffer: native.HostBuffer
) -> tuple[native.TransferReport, native.DeviceBuffer]:
    file = native.File(str(path))
    arena = native.DeviceBuffer(0, file.size)
    report = native.run_transfer(
        [file],
        [(buffer.address, -1)],
        [(0, 0, 0, file.size, 0)],
        [(0, 0, 0, file.size, 0)],
        [(0, arena.address)],
        mode="cufile",
        threads=8,
        control=native.Control(),
    )
    return report, arena


def test_a_load_passes_the_host_by(tmp_path: Path) -> None:
    tensors = random_tensors(9, 20_000_003)
    write_upstream(tmp_path / "m", tensors)
    for cold in (True, False):
        if cold:
            native.File(str(tmp_path / "m" / "tensor.data_0")).evict()
        loaded = load_checkpoint(tmp_path / "m", {"": visible_gpus()[0]}, mode="cufile")
        (arena,) = loaded.arenas
        assert isinstance(arena, native.DeviceBuffer)
        content = device_bytes(arena)
        for tensor in loaded.tensors:
            start = tensor.offset_bytes
            expected = tensors[tensor.name]
            assert content[start : start + len(expected)] == expected, tensor.name


def test_host_memory_is_not_touched(tmp_path: Path) -> None:
    content = random.Random(3).randbytes(64 * MIB + 77)
    (tmp_path / "data").write_bytes(content)
    buffer = native.HostBuffer(len(content))
    report, arena = read_to_device(tmp_path / "data", buffer)
    assert (report.bytes_direct, report.bytes_copied) == (len(content), 0)
    assert device_bytes(arena) == content
    assert ctypes.string_at(buffer.address, buffer.size) == bytes(buffer.size)
