"""HeadStart: a checkpoint opened, and on its way to a GPU, while the process imports what computes.

Importing PyTorch takes more than a second, in which the link would move 50 GB; the native core
needs none of it. So a thread opens the checkpoint and moves its files as they are into one
allocation of the GPU, from which groups are taken once there is somebody to compute with them. For
that time the GPU has the weights twice, so it is done only where there is room for that.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from sllm_store import native
from sllm_store.checkpoint.layout import Piece, plan_image
from sllm_store.errors import DeadlineError, StoreError
from sllm_store.groups.stored import open_stored
from sllm_store.tiers.device import allocate_device
from sllm_store.tiers.ring_steps import Ring, find_cold, plan_ring
from sllm_store.tiers.transfer import Target, cut_image, cut_targets, run_plan

if TYPE_CHECKING:
    from pathlib import Path

    from sllm_store.checkpoint.layout import Image
    from sllm_store.checkpoint.loaded import ArenaMemory
    from sllm_store.checkpoint.model import Checkpoint
    from sllm_store.groups.stored import StoredModel, StoredTensor

TIMEOUT_S = 300.0
SLOWEST_BYTES_PER_S = 10e6  # Of a disk that is still waited for.
SHARE = 0.8  # Of what may be taken: caches and what is in between need some of it.
CHUNK_BYTES = 8 << 20
RING_CHUNKS = 16
_THREADS_MAX = 16
_EXPERTS = ".experts."
_MODE = "auto"
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A checkpoint's files in one device's memory, every byte of its tensors.

    starts, ends and places: where each extent is in its file, keyed by (file, offset) in order, and
    in the memory.
    """

    memory: ArenaMemory
    starts: tuple[tuple[int, int], ...]
    ends: tuple[int, ...]
    places: tuple[int, ...]

    @classmethod
    def of(cls, checkpoint: Checkpoint, image: Image, memory: ArenaMemory) -> Arrived:
        """Describe memory that holds a checkpoint's image."""
        extents = checkpoint.extents
        order = sorted(range(len(extents)), key=lambda index: extents[index][:2])
        return cls(
            memory=memory,
            starts=tuple((extents[index].file, extents[index].offset) for index in order),
            ends=tuple(extents[index].offset + extents[index].size_bytes for index in order),
            places=tuple(image.offsets[index] for index in order),
        )

    def find(self, tensor: StoredTensor) -> int:
        """Return where a tensor's bytes begin."""
        index = bisect_right(self.starts, (tensor.file, tensor.offset)) - 1
        file, start = self.starts[index]
        end = tensor.offset + tensor.size_bytes
        assert index >= 0, "every tensor is in an extent"
        assert file == tensor.file, "every tensor is in an extent"
        assert end <= self.ends[index], "an extent has all of a tensor"
        return self.places[index] + tensor.offset - start


class HeadStart:
    """Opens a checkpoint in a thread, and moves it to a GPU if that has the room.

    Whoever begins one closes it. What goes wrong on the GPU is left to who reads the weights as
    usual, without it, to find.
    """

    def __init__(self, path: Path, *, device: int, budget_bytes: int | None = None) -> None:
        """budget_bytes: what a model may take on the device; None for what is free."""
        self.path = path
        self.device = device
        self._budget_bytes = budget_bytes
        self._control = native.Control()
        self._memory: native.DeviceBuffer | None = None
        self._stored: Future[StoredModel] = Future()
        self._taken: Future[int] = Future()
        self._arrived: Future[Arrived | None] = Future()
        self._thread = threading.Thread(target=self._run, name="head-start", daemon=True)
        self._thread.start()

    def stored(self, timeout_s: float = TIMEOUT_S) -> StoredModel:
        """Return the checkpoint, opened; raise what open_stored raises."""
        return _wait(self._stored, timeout_s)

    def taken_bytes(self, timeout_s: float = TIMEOUT_S) -> int:
        """Return what is taken on the device until this is closed; 0 if nothing is moved."""
        return _wait(self._taken, timeout_s)

    def arrived(self, timeout_s: float | None = None) -> Arrived | None:
        """Return what was moved, once all of it is there; None if it was not.

        timeout_s: without one, all of it is waited for as long as from the slowest of disks.
        """
        if timeout_s is None:
            timeout_s = TIMEOUT_S + self.taken_bytes() / SLOWEST_BYTES_PER_S
        return _wait(self._arrived, timeout_s)

    def close(self) -> None:
        """End what is under way, and keep nothing. A second call does nothing."""
        self._control.cancel()
        self._thread.join()
        self._memory = None
        self._arrived = Future()
        self._arrived.set_result(None)

    def _run(self) -> None:
        try:
            stored = open_stored(self.path)
            self._stored.set_result(stored)
            try:
                arrived = self._move(stored)
            except (StoreError, native.NativeError, native.CudaError):
                arrived = None  # Reading as usual meets it again, and says it where it is awaited.
            if not self._taken.done():
                self._taken.set_result(0)
            self._arrived.set_result(arrived)
        except BaseException as error:  # noqa: BLE001 - who waits for it raises it
            for waited in (self._stored, self._taken, self._arrived):
                if not waited.done():
                    waited.set_exception(error)

    def _move(self, stored: StoredModel) -> Arrived | None:
        checkpoint = stored.checkpoint
        if any(_EXPERTS in tensor.name for tensor in stored.tensors):
            return None  # Experts are read one by one, as many as there is room for.
        image = plan_image(checkpoint, CHUNK_BYTES)
        if not image.size_bytes or 2 * image.size_bytes > SHARE * self._room_bytes():
            return None
        self._memory = memory = allocate_device(self.device, image.size_bytes)
        self._taken.set_result(image.size_bytes)
        pieces = tuple(
            Piece(run.image_offset, run.size_bytes, run.image_offset) for run in image.runs
        )
        target = Target(device=self.device, address=memory.address, pieces=pieces)
        chunked = cut_image(image, CHUNK_BYTES)
        slots = min(chunked.chunks_total, RING_CHUNKS)
        ring = native.HostBuffer(slots * CHUNK_BYTES, pinned=True)
        run_plan(
            plan_ring(
                chunked,
                cut_targets([target], chunked),
                Ring(address=ring.address, slots=slots, slot_bytes=CHUNK_BYTES),
                cold=find_cold(chunked, stored.files, _MODE),
            ),
            stored.files,
            [target],
            mode=_MODE,
            threads=min(len(os.sched_getaffinity(0)), _THREADS_MAX),
            control=self._control,
        )
        checkpoint.require_unchanged()
        return Arrived.of(checkpoint, image, memory)

    def _room_bytes(self) -> int:
        free = native.device_memory(self.device)[0]
        return free if self._budget_bytes is None else min(free, self._budget_bytes)


def _wait(waited: Future[_Value], timeout_s: float) -> _Value:
    try:
        return waited.result(timeout_s)
    except TimeoutError as error:
        if waited.done():
            raise
        raise DeadlineError(f"a checkpoint was not there within {timeout_s} s") from error
