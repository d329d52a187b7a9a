"""Transfers on real GPUs: raw and coded bytes, over one link and several, to this process's memory
and to another's, and from one GPU to another."""

from __future__ import annotations

import ctypes
import random
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from sllm_store import native
from tests.native.delivery_cases import (
    HOST,
    PLACES,
    Arenas,
    Load,
    run_from_memory,
    run_through_a_ring,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MIB = 1 << 20


def require_gpus(count: int) -> None:
    if torch.cuda.device_count() < count:
        pytest.skip(f"needs {count} GPUs")


def gpus_of(place: tuple[tuple[int, ...], dict[int, tuple[int, ...]]]) -> int:
    ordinals, via = place
    return 1 + max(*ordinals, HOST, *(other for others in via.values() for other in others))


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_bytes_are_those_of_a_plain_load(
    tmp_path: Path, place: tuple[tuple[int, ...], dict[int, tuple[int, ...]]]
) -> None:
    require_gpus(gpus_of(place))
    for seed in range(3):
        load = Load(seed, *place, pieces=300)
        arenas = Arenas(load)
        run_from_memory(load, arenas)
        arenas.check()
        again = Arenas(load)
        run_through_a_ring(load, again, tmp_path / "image")
        again.check()


@pytest.mark.parametrize("via", [(), (1,), (1, 2, 3)], ids=str)
def test_a_corrupt_segment_is_named(via: tuple[int, ...]) -> None:
    require_gpus(1 + max(via, default=0))
    load = Load(5, (0,), {0: via}, pieces=100)
    step, _, _, _, stored_size, offset = load.decodes[len(load.decodes) // 2]
    at = step * MIB + offset
    load.stored[at : at + stored_size] = bytes(stored_size)
    with pytest.raises(native.NativeError, match="is corrupt") as caught:
        run_from_memory(load, Arenas(load))
    assert f"step {step}: the coded segment at {offset} " in str(caught.value)


@pytest.mark.parametrize("target", [0, 1])
def test_an_arena_is_copied_from_one_gpu_to_another(target: int) -> None:
    require_gpus(target + 1)
    content = random.Random(3).randbytes(100 * MIB + 3)
    host = ctypes.create_string_buffer(content, len(content))
    source = native.DeviceBuffer(0, len(content))
    native.copy_to_device(0, ctypes.addressof(host), source.address, len(content))
    arena = native.DeviceBuffer(target, len(content))
    native.run_transfer(
        [],
        [(source.address, -1)],
        [],
        [(0, 0, 0, len(content), 0)],
        [(target, arena.address)],
        mode="auto",
        threads=1,
        control=native.Control(),
    )
    ctypes.memset(host, 0, len(content))
    native.copy_from_device(target, arena.address, ctypes.addressof(host), len(content))
    assert host.raw == content


OWNER = """
import ctypes, sys
from sllm_store import native
size = int(sys.argv[1])
arena = native.DeviceBuffer(0, size)
print(arena.ipc_handle().hex(), flush=True)
sys.stdin.readline()
host = ctypes.create_string_buffer(size)
native.copy_from_device(0, arena.address, ctypes.addressof(host), size)
print(native.crc32c(ctypes.addressof(host), size), flush=True)
"""


@pytest.mark.parametrize("via", [(), (1,), (1, 2, 3)], ids=str)
def test_a_fan_in_ends_in_another_process(via: tuple[int, ...]) -> None:
    require_gpus(1 + max(via, default=0))
    size = 300 * MIB
    pool = native.SharedPool(size)
    pool.pin()
    generator = random.Random(4)
    for at in range(0, size, 100 * MIB):
        ctypes.memmove(pool.address + at, generator.randbytes(100 * MIB), 100 * MIB)
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        mapping = native.DeviceMapping(0, bytes.fromhex(owner.stdout.readline()))
        native.run_transfer(
            [],
            [(pool.address, -1)],
            [],
            [(0, 0, 0, size, 0)],
            [(0, mapping.address, via)],
            mode="auto",
            threads=1,
            control=native.Control(),
        )
        del mapping
        out, _ = owner.communicate("go\n", timeout=120)
    assert out.strip() == str(native.crc32c(pool.address, size))
