"""Load a checkpoint inside this process, without a store: files -> pinned ring -> devices.

For a host arena the ring disappears: reads land where the tensors will be. For a device the ring
is RING_CHUNKS pinned chunks, so a load pins 256 MiB whatever the size of the model.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.checkpoint.layout import plan_image
from sllm_store.checkpoint.loaded import Loaded
from sllm_store.checkpoint.plan import plan_load
from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.errors import DeadlineError
from sllm_store.tiers.device import allocate_device, device_error, device_ordinal
from sllm_store.tiers.direct_storage import choose_mode
from sllm_store.tiers.transfer import (
    Target,
    TransferPlan,
    cut_image,
    cut_pieces,
    open_files,
    run_plan,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sllm_store.checkpoint.plan import LoadPlan

CHUNK_BYTES = 32 << 20
RING_CHUNKS = 8
PROGRESS_INTERVAL_S = 0.1


def load_checkpoint(
    path: Path,
    device_map: Mapping[str, str],
    *,
    mode: str = "auto",
    threads: int | None = None,
    timeout_s: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Loaded:
    """Load a checkpoint into this process's memory.

    device_map maps name prefixes to 'cpu' or a GPU's UUID; empty means everything on the host.
    mode is 'auto', 'buffered', 'direct', 'io_uring' or 'cufile', which reads into GPU memory past
    the host; loads that also go to the host, or are compressed, are read as with 'auto' then.
    on_progress gets (bytes done, bytes in all) a few times a second. Raises the store's errors,
    DeadlineError after timeout_s; nothing stays allocated then.
    """
    checkpoint = open_checkpoint(path)
    plan = plan_load(checkpoint, plan_image(checkpoint, CHUNK_BYTES), device_map)
    arenas = _allocate(plan)
    host = next((arena for arena in arenas if isinstance(arena, native.HostBuffer)), None)
    targets = [
        Target(device=arena.device, address=arena.address, pieces=placed.pieces)
        for arena, placed in zip(arenas, plan.arenas, strict=True)
        if isinstance(arena, native.DeviceBuffer)
    ]
    files = open_files(checkpoint)
    only_copies = host is None and not checkpoint.is_compressed
    mode = choose_mode(mode, files, only_copies=only_copies)
    ring = None
    if host is None and targets:
        ring = _ring(plan, pinned=mode != "cufile")
    transfer = _plan_transfer(plan, targets, host, ring)
    control = native.Control()
    workers = threads or min(16, 2 * (os.cpu_count() or 4))
    with ThreadPoolExecutor(max_workers=1) as executor:
        running = executor.submit(
            run_plan, transfer, files, targets, mode=mode, threads=workers, control=control
        )
        try:
            _watch(control, transfer.bytes_total, running.done, timeout_s, on_progress=on_progress)
            running.result()
        except BaseException:
            control.cancel()
            raise
    checkpoint.require_unchanged()
    return Loaded(
        arenas=tuple(arenas),
        devices=plan.devices,
        tensors=plan.tensors,
        aliases=checkpoint.aliases,
        directory=checkpoint.directory,
        format=checkpoint.format,
        tier="disk",
        store="in-process",
    )


def _allocate(plan: LoadPlan) -> list[native.HostBuffer | native.DeviceBuffer | None]:
    """Allocate an arena for each device that gets bytes."""
    arenas: list[native.HostBuffer | native.DeviceBuffer | None] = []
    for device, arena in zip(plan.devices, plan.arenas, strict=True):
        if arena.size_bytes == 0:
            arenas.append(None)
        elif device == "cpu":
            arenas.append(native.HostBuffer(arena.size_bytes))
        else:
            arenas.append(allocate_device(device_ordinal(device), arena.size_bytes))
    return arenas


def _ring(plan: LoadPlan, *, pinned: bool) -> native.HostBuffer:
    """Allocate the ring, no larger than the image. Where cuFile reads, nothing touches it."""
    size_bytes = min(RING_CHUNKS * CHUNK_BYTES, plan.image.size_bytes)
    try:
        return native.HostBuffer(size_bytes, pinned=pinned)
    except native.CudaError as error:
        raise device_error(error, "cannot pin host memory for the load") from error


def _plan_transfer(
    plan: LoadPlan,
    targets: list[Target],
    host: native.HostBuffer | None,
    ring: native.HostBuffer | None,
) -> TransferPlan:
    """Read every chunk once: in place on the host, or through the ring to the devices."""
    chunked = cut_image(plan.image, CHUNK_BYTES)
    copies = cut_pieces(targets, CHUNK_BYTES, chunked.chunks_total)
    transfer = TransferPlan()
    slots: list[int] = [-1] * RING_CHUNKS
    used = 0
    for chunk, reads in enumerate(chunked.reads):
        if host is not None:
            address = host.address + chunk * CHUNK_BYTES
            transfer.add(address, reads=reads, copies=copies[chunk])
        elif copies[chunk]:
            assert ring is not None
            slot = used % RING_CHUNKS
            used += 1
            slots[slot] = transfer.add(
                ring.address + slot * CHUNK_BYTES,
                after=slots[slot],
                reads=reads,
                copies=copies[chunk],
            )
    return transfer


def _watch(
    control: native.Control,
    bytes_total: int,
    is_done: Callable[[], bool],
    timeout_s: float | None,
    *,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Report progress until the transfer is done; raise DeadlineError when it takes too long."""
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    bytes_done = 0
    while bytes_done < bytes_total and not is_done():
        wait_s = PROGRESS_INTERVAL_S
        if deadline_s is not None:
            wait_s = min(wait_s, deadline_s - time.monotonic())
            if wait_s <= 0:
                raise DeadlineError(f"the load did not end within {timeout_s} s")
        bytes_done = control.wait(bytes_done, wait_s)
        if on_progress is not None:
            on_progress(bytes_done, bytes_total)
