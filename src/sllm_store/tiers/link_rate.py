"""How fast the link to a GPU is: the best of a few copies, as one that slept has to wake up."""

from __future__ import annotations

import time

from sllm_store import native

_LEAST_S = 1e-9  # No clock tells less.


def link_rate(device: int, address: int, size_bytes: int, *, copies: int) -> float:
    """Return bytes a second of the best of several copies out of pinned memory at `address`.

    Raises CudaError, also where the GPU has no room for them.
    """
    target = native.DeviceBuffer(device, size_bytes)
    fastest_s = float("inf")
    for _ in range(copies):
        started_s = time.perf_counter()
        native.copy_to_device(device, address, target.address, size_bytes)
        fastest_s = min(fastest_s, time.perf_counter() - started_s)
    return size_bytes / max(fastest_s, _LEAST_S)
