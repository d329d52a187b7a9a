"""What a process does with (fake) GPUs, one case a process: CASE."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import pytest

from sllm_store import errors, native
from sllm_store.tiers.device import KnownArenas, allocate_arenas, open_gpus

MIB = 1 << 20


def driver() -> Any:
    return ctypes.CDLL(os.environ["SLLM_CUDA_LIBRARY"])


def all_are_opened() -> None:
    open_gpus()
    open_gpus()
    assert [driver().fake_cuda_retained(gpu) for gpu in range(native.device_count())] == [1] * 4


def one_cannot_be_opened() -> None:
    open_gpus()
    assert sum(driver().fake_cuda_retained(gpu) for gpu in range(native.device_count())) == 3


def arenas_are_where_they_belong() -> None:
    gpus = [native.device_uuid(gpu) for gpu in range(4)]
    wanted = [(gpus[2], 5 * MIB), ("cpu", MIB), (gpus[0], 3), (gpus[1], 0), (gpus[3], 2 * MIB)]
    arenas = allocate_arenas(wanted)
    found = [(arena.device, arena.size) if arena else None for arena in arenas]
    assert found == [(2, 5 * MIB), None, (0, 3), None, (3, 2 * MIB)]
    assert allocate_arenas([("cpu", MIB)]) == [None]


def known_arenas_are_allocated_before_the_plan_is_there() -> None:
    gpu = native.device_uuid(0)
    known, taken = KnownArenas(), []
    free = native.device_memory(0)[0]

    def load(size: int, name: str = "m") -> int:
        def plan() -> list[tuple[str, int]]:
            taken.append(free - native.device_memory(0)[0])
            return [(gpu, size), ("cpu", 9)]

        planned, arenas = known.allocate(name, plan, lambda plan: plan)
        assert planned == [(gpu, size), ("cpu", 9)]
        assert arenas[0] is not None
        assert arenas[1:] == [None]
        return arenas[0].size

    assert [load(size * MIB) for size in (4, 4, 6, 6)] == [4 * MIB, 4 * MIB, 6 * MIB, 6 * MIB]
    assert load(8 * MIB, "another") == 8 * MIB
    assert taken == [0, 4 * MIB, 4 * MIB, 6 * MIB, 0]
    with pytest.raises(ZeroDivisionError):
        known.allocate("m", lambda: 1 // 0, lambda _: [])
    assert native.device_memory(0)[0] == free


def a_guess_is_taken_where_it_fits() -> None:
    gpu, other = native.device_uuid(0), native.device_uuid(1)
    free = native.device_memory(0)[0]
    wanted = 64 * MIB

    def load(guess: list[tuple[str, int]]) -> tuple[int, int]:
        """Return what was taken when the plan was made, and what there is in the end."""

        def plan() -> int:
            return free - native.device_memory(0)[0]

        taken, arenas = KnownArenas().allocate(
            "m", plan, lambda _: [(gpu, wanted)], guess=lambda: guess
        )
        assert arenas[0] is not None
        assert arenas[0].device == 0
        assert free - native.device_memory(0)[0] == -(-arenas[0].size // (2 * MIB)) * 2 * MIB
        return taken, arenas[0].size

    assert load([(gpu, wanted)]) == (wanted, wanted)
    assert load([(gpu, wanted + MIB)]) == (wanted + 2 * MIB, wanted + MIB)
    for misses in ([], [(gpu, wanted - 1)], [(gpu, 2 * wanted)], [(other, wanted)]):
        assert load(misses)[1] == wanted
    assert load([(gpu, 1 << 50)]) == (0, wanted)


def a_full_gpu_leaves_nothing_allocated() -> None:
    gpus = [native.device_uuid(gpu) for gpu in range(4)]
    wanted = [(gpu, (1 if gpu != gpus[1] else 1 << 20) * MIB) for gpu in gpus]
    with pytest.raises(errors.OutOfDeviceMemoryError, match="GPU 1 has"):
        allocate_arenas(wanted)
    assert driver().fake_cuda_live_allocations() == 0


if __name__ == "__main__":
    globals()[sys.argv[1]]()
