"""Load a checkpoint inside this process, without a store: files -> pinned ring -> devices.

For a host arena the ring disappears: reads land where the tensors will be, unless they have to be
decoded. For a device the ring is RING_CHUNKS pinned chunks, so a load pins 256 MiB whatever the
size of the model.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.checkpoint.layout import plan_image
from sllm_store.checkpoint.loaded import Loaded
from sllm_store.checkpoint.plan import plan_load
from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.tiers.device import allocate_device, device_error, device_ordinal
from sllm_store.tiers.direct_storage import choose_mode
from sllm_store.tiers.transfer import (
    HOST_DEVICE,
    Target,
    TransferPlan,
    cut_image,
    cut_targets,
    open_files,
    run_plan,
)
from sllm_store.tiers.watching import run_watched

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sllm_store.checkpoint.plan import LoadPlan

CHUNK_BYTES = 32 << 20
RING_CHUNKS = 8


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
    # What is compressed cannot be read in place: then the host is a target as any other.
    in_place = () if checkpoint.is_compressed else arenas
    host = next((arena for arena in in_place if isinstance(arena, native.HostBuffer)), None)
    targets = _targets(plan, arenas, host)
    files = open_files(checkpoint)
    only_copies = host is None and not checkpoint.is_compressed
    mode = choose_mode(mode, files, only_copies=only_copies)
    ring = None
    if host is None and targets:
        on_gpu = any(target.device != HOST_DEVICE for target in targets)
        ring = _ring(plan, pinned=on_gpu and mode != "cufile")
    transfer = _plan_transfer(plan, targets, host, ring)
    control = native.Control()
    workers = threads or min(16, 2 * (os.cpu_count() or 4))
    run_watched(
        lambda: run_plan(transfer, files, targets, mode=mode, threads=workers, control=control),
        control,
        bytes_total=transfer.bytes_total,
        timeout_s=timeout_s,
        on_progress=on_progress,
    )
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


def _targets(
    plan: LoadPlan,
    arenas: list[native.HostBuffer | native.DeviceBuffer | None],
    host: native.HostBuffer | None,
) -> list[Target]:
    """Return the arenas that are delivered to: all but a host's that is read in place."""
    return [
        Target(
            device=arena.device if isinstance(arena, native.DeviceBuffer) else HOST_DEVICE,
            address=arena.address,
            pieces=placed.pieces,
            decodes=placed.decodes,
        )
        for arena, placed in zip(arenas, plan.arenas, strict=True)
        if arena is not None and arena is not host
    ]


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
    """Read every chunk once: in place on the host, or through the ring to the targets."""
    chunked = cut_image(plan.image, CHUNK_BYTES)
    moves = cut_targets(targets, chunked)
    transfer = TransferPlan()
    slots: list[int] = [-1] * RING_CHUNKS
    used = 0
    for chunk, reads in enumerate(chunked.reads):
        if host is not None:
            address = host.address + chunk * CHUNK_BYTES
            transfer.add(address, reads=reads, moves=moves[chunk])
        elif moves[chunk].is_any:
            assert ring is not None
            slot = used % RING_CHUNKS
            used += 1
            slots[slot] = transfer.add(
                ring.address + slot * CHUNK_BYTES,
                after=slots[slot],
                reads=reads,
                moves=moves[chunk],
            )
    return transfer
