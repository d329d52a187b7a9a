"""What test_direct_storage.py runs with fake GPUs and a fake cuFile, one case a process."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from sllm_store import native
from sllm_store.disks import Comparison, disk_memory, disk_of
from sllm_store.stream import load_checkpoint
from sllm_store.tiers.direct_storage import compare_ways, recall_comparison
from tests.store_process import random_tensors, write_upstream

if TYPE_CHECKING:
    from sllm_store.checkpoint.loaded import Loaded

MB = 1 << 20
COUNT, SIZE = 7, 11_000_003


def fake(variable: str) -> Any:
    return ctypes.CDLL(os.environ[variable])


def cufile_reads() -> int:
    return int(fake("SLLM_CUFILE_LIBRARY").fake_cufile_reads())


def make_model(directory: Path) -> Path:
    write_upstream(directory / "m", random_tensors(COUNT, SIZE))
    os.sync()
    native.File(str(directory / "m" / "tensor.data_0")).evict()
    return directory / "m"


def check(loaded: Loaded) -> None:
    expected = random_tensors(COUNT, SIZE)
    assert {tensor.name for tensor in loaded.tensors} == set(expected)
    for tensor in loaded.tensors:
        arena = loaded.arenas[tensor.arena]
        content = expected[tensor.name]
        if isinstance(arena, native.DeviceBuffer):
            host = native.HostBuffer(len(content))
            start = arena.address + tensor.offset_bytes
            native.copy_from_device(arena.device, start, host.address, len(content))
            assert ctypes.string_at(host.address, len(content)) == content, tensor.name
        else:
            assert isinstance(arena, native.HostBuffer)
            start = arena.address + tensor.offset_bytes
            assert ctypes.string_at(start, len(content)) == content, tensor.name


def a_forced_load_passes_the_host_by(directory: Path) -> None:
    model = make_model(directory)
    seen: list[tuple[int, int]] = []
    spread = {"": native.device_uuid(0), "layers.1": native.device_uuid(1)}
    for device_map in ({"": native.device_uuid(1)}, spread):
        before = cufile_reads()
        check(
            load_checkpoint(
                model,
                device_map,
                mode="cufile",
                on_progress=lambda done, total: seen.append((done, total)),
            )
        )
        assert cufile_reads() > before
        assert seen[-1][0] == seen[-1][1]
    assert fake("SLLM_CUDA_LIBRARY").fake_cuda_live_streams() == 0


def a_load_that_also_goes_to_the_host_is_read_as_usual(directory: Path) -> None:
    model = make_model(directory)
    check(load_checkpoint(model, {"": native.device_uuid(0), "layers.1": "cpu"}, mode="cufile"))
    check(load_checkpoint(model, {}, mode="cufile"))
    assert cufile_reads() == 0


def a_remembered_comparison_decides(directory: Path) -> None:
    model = make_model(directory)
    everywhere = {"": native.device_uuid(0)}
    for by_cufile, expected in ((1e9, False), (9e9, True)):
        comparison = Comparison(by_host=3e9, by_cufile=by_cufile)
        disk_memory(os.environ).keep_comparison(disk_of(model), comparison)
        check(load_checkpoint(model, everywhere))
        assert (cufile_reads() > 0) == expected


def both_ways_are_measured_and_remembered(directory: Path) -> None:
    path = directory / "data"
    path.write_bytes(Random(0).randbytes(41 * MB))
    os.sync()
    files = [native.File(str(path))]
    assert compare_ways(files, 0) is None
    comparison = compare_ways(files, 1, chunk_bytes=MB)
    assert comparison is not None
    assert comparison.by_host > 0
    assert comparison.by_cufile > 0
    assert recall_comparison(path) == comparison
    assert cufile_reads() > 0
    assert fake("SLLM_CUDA_LIBRARY").fake_cuda_registrations() == 0
    assert fake("SLLM_CUDA_LIBRARY").fake_cuda_live_allocations() == 0


def without_cufile_nothing_is_compared(directory: Path) -> None:
    os.environ["SLLM_CUFILE_LIBRARY"] = "/no/such/libcufile.so"
    path = directory / "data"
    path.write_bytes(bytes(41 * MB))
    assert compare_ways([native.File(str(path))], 0, chunk_bytes=MB) is None
    assert recall_comparison(path) is None


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
