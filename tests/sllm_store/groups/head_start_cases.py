"""What test_head_start.py runs with a fake GPU: a process loads one CUDA driver for good."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from sllm_store import native
from sllm_store.groups.head_start import Arrived, HeadStart
from sllm_store.groups.reader import GroupReader


def main() -> None:
    """Move a checkpoint; print how many bytes were taken, and whether all arrived as stored."""
    path, device, budget = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    head_start = HeadStart(path, device=device, budget_bytes=budget or None)
    arrived = head_start.arrived(60)
    print(
        head_start.taken_bytes(60), "nothing" if arrived is None else _compare(head_start, arrived)
    )
    del arrived
    head_start.close()
    fake = ctypes.CDLL(os.environ["SLLM_CUDA_LIBRARY"])
    assert fake.fake_cuda_live_allocations() == 0, "what came ahead is given back"


def _compare(head_start: HeadStart, arrived: Arrived) -> str:
    memory = arrived.memory
    assert isinstance(memory, native.DeviceBuffer)
    stored = head_start.stored(60)
    reader = GroupReader(stored, [[tensor] for tensor in stored.tensors])
    for group, tensor in enumerate(stored.tensors):
        expected = reader.load(group)
        place = reader.layouts[group].places[0]
        found = ctypes.create_string_buffer(max(tensor.size_bytes, 1))
        start = memory.address + arrived.find(tensor)
        native.copy_from_device(memory.device, start, ctypes.addressof(found), tensor.size_bytes)
        own = ctypes.string_at(expected.address + place, tensor.size_bytes)
        if found.raw[: tensor.size_bytes] != own:
            return f"{tensor.name} differs"
    return "equal"


if __name__ == "__main__":
    main()
