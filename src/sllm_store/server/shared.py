"""Shared loads: arenas that the server allocates, fills once and keeps for all who map them."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from sllm_store import native
from sllm_store.errors import OutOfDeviceMemoryError
from sllm_store.server.loads import LoadResult
from sllm_store.tiers.device import allocate_device, device_error, device_ordinal
from sllm_store.tiers.transfer import Target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm_store.checkpoint.layout import Arena
    from sllm_store.server.catalog import Entry
    from sllm_store.server.loads import Loader, LoadJob
    from sllm_store.server.metrics import StoreMetrics
    from sllm_store.tiers.resident import ArenaKey, DeviceTier, ResidentArena


class SharedLoader:
    """Loads into resident arenas."""

    def __init__(self, loader: Loader, devices: DeviceTier, metrics: StoreMetrics) -> None:
        """Fill arenas with `loader`, and keep them in `devices`."""
        self._loader = loader
        self._devices = devices
        self._metrics = metrics

    def try_hold(self, wanted: Sequence[tuple[ArenaKey, Arena]], holder: str) -> LoadResult | None:
        """Hold arenas that are all resident; None, without waiting, if one is not."""
        started_s = time.monotonic()
        residents = self._devices.try_hold([key for key, _ in wanted], holder)
        if residents is None:
            return None
        result = self._result("device", residents, holder, started_s)
        self._metrics.on_load(residents[0].key.model, result)
        return result

    def load(
        self, entry: Entry, wanted: Sequence[tuple[ArenaKey, Arena]], job: LoadJob
    ) -> LoadResult:
        """Hold arenas, having filled those that are not resident; runs in a thread.

        Raises OutOfDeviceMemoryError if one does not fit, though all went that nobody holds.
        """
        started_s = time.monotonic()
        devices, patience = self._devices, job.patience()
        held: dict[ArenaKey, ResidentArena] = {}
        filling: list[ResidentArena] = []
        with ExitStack() as undo:
            for key, arena in sorted(wanted, key=lambda pair: pair[0].gpu):
                asked_s = time.monotonic()
                resident, fills = devices.enter(key, arena, holder=job.holder, patience=patience)
                job.meter.waited_s += time.monotonic() - asked_s
                held[key] = resident
                if fills:
                    filling.append(resident)
                undo.callback(devices.abandon if fills else devices.release, resident, job.holder)
            tier, bytes_read = "device", 0
            if filling:
                filled = self._fill(entry, filling, job)
                tier = filled.tier if len(filling) == len(wanted) else "mixed"
                bytes_read = filled.bytes_read
            undo.pop_all()
        residents = [held[key] for key, _ in wanted]
        result = self._result(tier, residents, job.holder, started_s, bytes_read=bytes_read)
        if not filling:
            self._metrics.on_load(entry.name, result)
        return result

    def _fill(self, entry: Entry, filling: Sequence[ResidentArena], job: LoadJob) -> LoadResult:
        memories = [self._allocate(resident) for resident in filling]
        handles = [_export(memory) for memory in memories]
        targets = [
            Target(
                device=memory.device,
                address=memory.address,
                pieces=resident.arena.pieces,
                decodes=resident.arena.decodes,
                arena=resident.arena,
            )
            for resident, memory in zip(filling, memories, strict=True)
        ]
        result = self._loader.load_device(entry, targets, job)
        for resident, memory, handle in zip(filling, memories, handles, strict=True):
            self._devices.commit(resident, memory, handle)
        return result

    def _allocate(self, resident: ResidentArena) -> native.DeviceBuffer:
        """Allocate an arena; arenas that nobody holds make room for it."""
        gpu = resident.key.gpu
        device = device_ordinal(gpu)
        self._devices.wait_freed()
        while True:
            try:
                return allocate_device(device, resident.size_bytes)
            except OutOfDeviceMemoryError as error:
                if not self._devices.evict(gpu):
                    raise OutOfDeviceMemoryError(
                        f"{error}; the store keeps there: {self._devices.describe(gpu)}"
                    ) from error

    def _result(
        self,
        tier: str,
        residents: Sequence[ResidentArena],
        holder: str,
        started_s: float,
        *,
        bytes_read: int = 0,
    ) -> LoadResult:
        return LoadResult(
            tier=tier,
            bytes_read=bytes_read,
            bytes_copied=0,
            total_s=time.monotonic() - started_s,
            arenas=tuple(residents),
            holds=tuple(partial(self._devices.release, arena, holder) for arena in residents),
        )


def _export(memory: native.DeviceBuffer) -> bytes:
    try:
        return memory.ipc_handle()
    except native.CudaError as error:
        what = f"cannot share memory of GPU {memory.device} with other processes"
        raise device_error(error, what) from error
