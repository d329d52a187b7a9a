"""What the disk and the links do, as far as that is known before the first load.

The disk's rate is what transfers of other processes have learnt (disks.py). A link's is measured:
64 MiB out of the pool take 1.2 ms at 55 GB/s.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.disks import disk_memory, read_use
from sllm_store.server.estimate import DISK
from sllm_store.tiers.link_rate import link_rate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

LINK_BYTES = 64 << 20
_COPIES = 3

log = logging.getLogger(__name__)


def disk_rate(path: Path, read_mode: str, environ: Mapping[str, str]) -> dict[str, float]:
    """Return what is known of the disk that holds a path, nothing if that is nothing."""
    try:
        memory = disk_memory(environ)
        learnt = memory.recall(memory.find(path)).get(read_use(read_mode))
    except OSError as error:
        log.debug("nothing is known of the disk of %s: %s", path, error)
        return {}
    return {DISK: learnt.rate} if learnt is not None and learnt.rate > 0 else {}


def link_rates(
    pool: native.SharedPool, gpus: Sequence[str], neighbours: Mapping[int, Sequence[int]]
) -> dict[str, float]:
    """Return the bytes a second from a pinned pool to each GPU, those over neighbours' links too.

    A GPU that has no memory for it is left out.
    """
    if not pool.pinned:
        return {}
    size = min(LINK_BYTES, pool.size)
    rates: dict[int, float] = {}
    for device in range(len(gpus)):
        try:
            rates[device] = link_rate(device, pool.address, size, copies=_COPIES)
        except native.CudaError as error:
            log.debug("the link of GPU %d is not measured: %s", device, error)
    return {
        gpus[device]: rate + sum(rates.get(other, 0.0) for other in neighbours.get(device, ()))
        for device, rate in rates.items()
    }
