"""Load a checkpoint inside this process, without a store: files -> pinned ring -> devices.

For a host arena the ring disappears: reads land where the tensors will be, unless they have to be
decoded. For a device the ring is RING_CHUNKS pinned chunks, so a load pins 128 MiB whatever the
size of the model, and for several devices twice that. Page cache to GPU, 8 GB by 14 threads: 53.7
GB/s with 16 chunks of 8 MiB, 40 to 52 with fewer or larger ones.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.checkpoint.loaded import Placed
from sllm_store.checkpoint.plan import CPU
from sllm_store.errors import DeviceError
from sllm_store.interpreter import no_collection, short_turns
from sllm_store.tiers.device import allocate_arenas, device_ordinal
from sllm_store.tiers.direct_storage import choose_mode
from sllm_store.tiers.planned import PlannedLoads, files_at
from sllm_store.tiers.ring import Rings
from sllm_store.tiers.ring_steps import find_cold
from sllm_store.tiers.transfer import (
    HOST_DEVICE,
    Target,
    TransferPlan,
    cut_targets,
    open_files,
    run_plan,
)
from sllm_store.tiers.watching import run_watched
from sllm_store.units import div_ceil

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sllm_store.checkpoint.loaded import Loaded
    from sllm_store.checkpoint.model import Checkpoint
    from sllm_store.checkpoint.plan import LoadPlan
    from sllm_store.tiers.planned import Files
    from sllm_store.tiers.transfer import ChunkedImage
    from sllm_store.tiers.watching import OnProgress

CHUNK_BYTES = 8 << 20
RING_CHUNKS = 16
RINGS_MAX = 2  # Of RING_CHUNKS each, however many devices there are: pinning takes time.
THREADS_MIN = 4
THREADS_PER_DEVICE = 16
THREADS_MAX = 64
CORES_LEFT = 2  # For threads that wait for copies, and for Python.
CUFILE = "cufile"

_RINGS = Rings()
_LOADS = PlannedLoads(CHUNK_BYTES)


def load_checkpoint(  # noqa: PLR0913 - a load's choices, by name
    path: Path,
    device_map: Mapping[str, str],
    *,
    mode: str = "auto",
    threads: int | None = None,
    timeout_s: float | None = None,
    on_progress: OnProgress | None = None,
    on_placed: Callable[[Placed], None] | None = None,
) -> Loaded:
    """Load a checkpoint into this process's memory.

    device_map maps name prefixes to 'cpu' or a GPU's UUID; empty means everything on the host.
    mode is 'auto', 'buffered', 'direct', 'io_uring' or 'cufile', which reads into GPU memory past
    the host; loads that also go to the host, or are compressed, are read as with 'auto' then.
    on_progress gets (bytes done, bytes in all) a few times a second. on_placed is called once, as
    soon as the memory is there, while the bytes still move. Raises the store's errors,
    DeadlineError after timeout_s; nothing stays allocated then, but for a ring that waits a few
    seconds for the next load.
    """
    with short_turns(), ExitStack() as using, ExitStack() as undisturbed:
        undisturbed.enter_context(no_collection())
        job = _prepare(path, device_map, mode, using)
        control = native.Control()

        def begun() -> None:
            if on_placed is not None:
                on_placed(job.placed)
            undisturbed.close()

        run_watched(
            lambda beside: run_plan(
                job.transfer,
                job.files,
                job.targets,
                mode=job.mode,
                threads=threads or _threads(len(job.placed.devices)),
                control=control,
                beside=beside,
            ),
            control,
            bytes_total=job.transfer.bytes_total,
            timeout_s=timeout_s,
            on_progress=on_progress,
            meanwhile=begun,
        )
        job.checkpoint.require_unchanged()
    return job.placed.loaded(tier="disk", store="in-process")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A load, ready to run; `transfer` goes through `ring`, if there is one."""

    checkpoint: Checkpoint
    files: list[native.File]
    mode: str
    placed: Placed
    targets: list[Target]
    ring: native.HostBuffer | None
    transfer: TransferPlan


def _prepare(path: Path, device_map: Mapping[str, str], mode: str, using: ExitStack) -> _Job:
    """Open, plan and allocate; a ring is borrowed for as long as `using` is open."""
    pinned = None
    gpu = None if mode == CUFILE else _only_gpus(device_map)
    found = files_at(path)
    ring_bytes = _ring_bytes(path, device_map, found)
    if gpu is not None:  # It is pinned while the checkpoint is opened.
        pinned = using.enter_context(_RINGS.borrow(ring_bytes, gpu))
    planned = _LOADS.plan(path, device_map, found)
    checkpoint, plan = planned.checkpoint, planned.plan
    files = open_files(checkpoint)
    in_place = _is_read_in_place(plan)
    mode = choose_mode(mode, files, only_copies=not in_place and not checkpoint.is_compressed)
    if in_place:
        arenas = _allocate(plan)
        host = next(arena for arena in arenas if isinstance(arena, native.HostBuffer))
        targets = _targets(plan, arenas, host)
        transfer = _plan_in_place(planned.chunked, targets, host)
    else:  # The arenas last: while the driver pins the ring, it lets nobody allocate.
        host = None
        cold = find_cold(planned.chunked, files, mode)
        transfer = planned.through_ring(ring_bytes // CHUNK_BYTES, cold)
        arenas = _allocate(plan)
        targets = _targets(plan, arenas, host)
    ring = None
    if host is None and targets:  # By now it may be pinned.
        gpu = max(target.device for target in targets)
        if pinned is None and mode != CUFILE and gpu != HOST_DEVICE:
            pinned = using.enter_context(_RINGS.borrow(ring_bytes, gpu))
        # Where cuFile reads, nothing touches the ring; what goes to the host need not be pinned.
        ring = native.HostBuffer(ring_bytes) if pinned is None else pinned.result()
        transfer = transfer.moved_to(ring.address)
    placed = Placed(
        arenas=tuple(arenas),
        devices=plan.devices,
        tensors=plan.tensors,
        aliases=checkpoint.aliases,
        directory=checkpoint.directory,
        format=checkpoint.format,
    )
    return _Job(
        checkpoint=checkpoint,
        files=files,
        mode=mode,
        placed=placed,
        targets=targets,
        ring=ring,
        transfer=transfer,
    )


def _is_read_in_place(plan: LoadPlan) -> bool:
    """Whether a part goes to the host as it is stored: what is compressed has to be decoded."""
    if plan.checkpoint.is_compressed:
        return False
    arenas = zip(plan.devices, plan.arenas, strict=True)
    return any(device == CPU and arena.size_bytes for device, arena in arenas)


def _allocate(plan: LoadPlan) -> list[native.HostBuffer | native.DeviceBuffer | None]:
    wanted = [
        (device, arena.size_bytes) for device, arena in zip(plan.devices, plan.arenas, strict=True)
    ]
    return [
        native.HostBuffer(size_bytes) if device == CPU and size_bytes else memory
        for (device, size_bytes), memory in zip(wanted, allocate_arenas(wanted), strict=True)
    ]


def _only_gpus(device_map: Mapping[str, str]) -> int | None:
    """Return one of the GPUs of a map that names GPUs alone, by ordinal, else None."""
    if CPU not in device_map.values():
        for gpu in device_map.values():
            with suppress(DeviceError):  # Whether it is needed at all is not known yet.
                return device_ordinal(gpu)
    return None


def _ring_bytes(path: Path, device_map: Mapping[str, str], files: Files) -> int:
    """Return the size of a ring for the files at `path`: no larger than those, in whole chunks."""
    chunks_max = RING_CHUNKS * min(max(len(set(device_map.values())), 1), RINGS_MAX)
    sizes = {name: size_bytes for name, _, size_bytes, _ in files}
    size_bytes = sizes.get(path.name, sum(sizes.values()))
    return min(max(div_ceil(size_bytes, CHUNK_BYTES), 1), chunks_max) * CHUNK_BYTES


def _threads(devices: int) -> int:
    """Return how many threads read: one link's worth of them for every device."""
    cores = len(os.sched_getaffinity(0))
    threads_max = min(THREADS_PER_DEVICE * max(devices, 1), THREADS_MAX)
    return min(max(cores - CORES_LEFT, THREADS_MIN), threads_max)


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


def _plan_in_place(
    chunked: ChunkedImage, targets: list[Target], host: native.HostBuffer
) -> TransferPlan:
    """Read every chunk once, where it belongs on the host; what targets want is copied there."""
    moves = cut_targets(targets, chunked)
    transfer = TransferPlan()
    for chunk, reads in enumerate(chunked.reads):
        transfer.add(host.address + chunk * CHUNK_BYTES, reads=reads, moves=moves[chunk])
    return transfer
