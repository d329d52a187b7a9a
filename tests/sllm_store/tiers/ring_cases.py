"""Loads of this process to (fake) GPUs, one case a process: CASE DIRECTORY."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sllm_store import errors, native
from sllm_store.stream import CHUNK_BYTES, load_checkpoint
from sllm_store.tiers.ring import Rings
from tests.store_process import random_tensors, wait_until, write_upstream

if TYPE_CHECKING:
    from sllm_store.checkpoint.loaded import Placed

COUNT, SIZE = 30, 6_000_001  # More than a ring holds.
MIB = 1 << 20


def registrations() -> int:
    driver: Any = ctypes.CDLL(os.environ["SLLM_CUDA_LIBRARY"])
    return int(driver.fake_cuda_registrations())


def load(model: Path, **options: Any) -> None:
    """Load to both GPUs, and compare every byte."""
    spread = {"": native.device_uuid(0), "layers.1": native.device_uuid(1)}
    loaded = load_checkpoint(model, spread, **options)
    for name, content in random_tensors(COUNT, SIZE).items():
        (tensor,) = [tensor for tensor in loaded.tensors if tensor.name == name]
        arena = loaded.arenas[tensor.arena]
        assert isinstance(arena, native.DeviceBuffer)
        host = ctypes.create_string_buffer(len(content))
        address = arena.address + tensor.offset_bytes
        native.copy_from_device(arena.device, address, ctypes.addressof(host), len(content))
        assert host.raw == content


def loads_in_a_row(directory: Path) -> None:
    write_upstream(directory / "m", random_tensors(COUNT, SIZE))
    load(directory / "m")
    assert registrations() == 1
    load(directory / "m")
    assert registrations() == 1


def placed_before_the_bytes(directory: Path) -> None:
    write_upstream(directory / "m", random_tensors(COUNT, SIZE))
    seen: list[tuple[Placed, int]] = []
    progress: list[int] = []
    load(
        directory / "m",
        on_placed=lambda placed: seen.append((placed, len(progress))),
        on_progress=lambda done, _: progress.append(done),
    )
    ((placed, told),) = seen
    assert told == 0
    assert len(placed.tensors) == COUNT
    assert all(isinstance(arena, native.DeviceBuffer) for arena in placed.arenas)


def failed_loads_give_their_ring_back(directory: Path) -> None:
    gpu = {"": native.device_uuid(0)}
    for _ in range(3):
        with pytest.raises(errors.CheckpointNotFoundError):
            load_checkpoint(directory / "none", gpu)
    wait_until(lambda: registrations() == 1)
    write_upstream(directory / "small", random_tensors(1, 1000))

    def refuse(placed: Placed) -> None:
        assert placed.tensors
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_checkpoint(directory / "small", gpu, on_placed=refuse)
    assert registrations() == 1


def rings_are_kept_and_unpinned(_: Path) -> None:
    rings = Rings(keep_s=0.2)
    with rings.borrow(CHUNK_BYTES, 0) as first, rings.borrow(CHUNK_BYTES, 0) as second:
        addresses = {first.result().address, second.result().address}
        assert len(addresses) == 2
        assert registrations() == 2
    with rings.borrow(CHUNK_BYTES // 2, 0) as again:
        assert again.result().address in addresses
    with rings.borrow(2 * CHUNK_BYTES, 0) as larger:
        assert larger.result().size == 2 * CHUNK_BYTES
    del first, second, again, larger
    wait_until(lambda: registrations() == 0)


def memory_that_cannot_be_pinned(_: Path) -> None:
    rings = Rings()
    with (
        pytest.raises(errors.DeviceError, match="cannot pin host memory"),
        rings.borrow(CHUNK_BYTES, 7) as ring,
    ):
        ring.result()
    with rings.borrow(CHUNK_BYTES, 0) as ring:
        assert ring.result().size == CHUNK_BYTES


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
