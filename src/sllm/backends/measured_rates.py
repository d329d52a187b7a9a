"""What this machine's memory and links were measured to do, remembered between processes.

A rate of memory or of a link is measured once for a kind of device, in some hundredths of a second,
and kept in a file beside what the store learnt of disks; that is where a disk's rate comes from.
Files are hints: one that is missing or damaged is measured anew.
"""

from __future__ import annotations

import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import torch

from sllm.runtime.weights.forecast import Rates
from sllm_store.disks import USES, disk_memory, disk_of
from sllm_store.user_cache import keep_text, user_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_VERSION = 1
_MEMORY_BYTES = 1 << 28
_LINK_BYTES = 1 << 26
_TURNS = 5


def rates_for(path: Path, device: torch.device, environ: Mapping[str, str] = os.environ) -> Rates:
    """Return the rates that a model at a path has on a device; measure what is not remembered."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{name}-{os.cpu_count()}-cpus")
    file = user_cache(environ) / "rates" / f"{words}.json"
    known = _recall(file)
    if known is None:
        known = _measure_gpu(device) if device.type == "cuda" else {"memory": _measure_host()}
        with suppress(OSError):  # It is measured again next time.
            keep_text(file, json.dumps({"version": _VERSION, "rates": known}))
    return Rates(memory=known["memory"], link=known.get("link"), disk=disk_rate(path, environ))


def disk_rate(path: Path, environ: Mapping[str, str] = os.environ) -> float | None:
    """Return the best rate at which a path's disk was read; None if nothing was learnt of it."""
    try:
        learnt = disk_memory(environ).recall(disk_of(path))
    except OSError:
        return None
    return max((learnt[use].rate for use in USES[:2] if use in learnt), default=0.0) or None


def _measure_gpu(device: torch.device) -> dict[str, float]:
    try:
        return _measure_copies(device)
    finally:
        torch.cuda.empty_cache()  # PyTorch would keep the room, and weights are to have it.


def _measure_copies(device: torch.device) -> dict[str, float]:
    source = torch.empty(_MEMORY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    pinned = torch.empty(_LINK_BYTES, dtype=torch.uint8).pin_memory()

    def copy(size_bytes: int, to: torch.Tensor, of: torch.Tensor) -> None:
        to[:size_bytes].copy_(of[:size_bytes], non_blocking=True)
        torch.cuda.synchronize(device)

    return {
        "memory": 2 * _MEMORY_BYTES / _least_s(lambda: copy(_MEMORY_BYTES, target, source)),
        "link": _LINK_BYTES / _least_s(lambda: copy(_LINK_BYTES, target, pinned)),
    }


def _measure_host() -> float:
    """Return the rate at which all processors together read memory."""
    threads = os.cpu_count() or 1
    parts = np.array_split(np.ones(_MEMORY_BYTES // 8, dtype=np.int64), threads)
    with ThreadPoolExecutor(threads) as pool:
        return _MEMORY_BYTES / _least_s(lambda: list(pool.map(np.bitwise_or.reduce, parts)))


def _least_s(run: Callable[[], object]) -> float:
    """Return the seconds of the fastest of some turns."""
    took = []
    for _ in range(_TURNS):
        began_s = time.perf_counter()
        run()
        took.append(time.perf_counter() - began_s)
    return min(took)


def _recall(file: Path) -> dict[str, float] | None:
    try:
        said = json.loads(file.read_text())
        if said["version"] != _VERSION:
            return None
        found = {name: float(rate) for name, rate in said["rates"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if "memory" in found and all(rate > 0 for rate in found.values()) else None
