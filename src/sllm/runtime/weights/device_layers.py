"""Layers streamed to a device: from pinned memory or disk, through a ring of its buffers.

With B bytes of streamed layers, a pass takes max(B / link, computation) plus what is at its ends:
the ring's thread asks for the copy of a layer as soon as a buffer is free, and the first layers of
the next pass are on their way while this one ends.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.utils.dlpack import from_dlpack

from sllm_store.groups.reads import ThreadedReads
from sllm_store.groups.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from sllm.runtime.weights.images import GroupImage
    from sllm.runtime.weights.lane import Lane
    from sllm.runtime.weights.placement import Tensors
    from sllm_store.groups.ring import RingCounts


@dataclass(slots=True)
class _DeviceSlot:
    """A buffer on the device: the mark of its last use, and that of the copy into it."""

    memory: torch.Tensor
    used: Any
    copied: Any


class DeviceLayers:
    """Streams groups to a device in an order that repeats. Close it to end its reads and copies."""

    def __init__(
        self,
        lane: Lane[Any],
        images: Mapping[int, GroupImage],
        *,
        slots: int,
        pinned: Mapping[int, torch.Tensor],
        staging: Ring[Any] | None,
    ) -> None:
        """Begin to copy groups in the order of `images`, which has the layout of each.

        What is not in `pinned` host memory, laid out already, comes from disk by way of `staging`
        and is laid out on the device before each use.
        """
        self._lane = lane
        self._images = images
        staged = [image for group, image in images.items() if group not in pinned]
        scratch_bytes = max((i.size_bytes for i in staged if not i.is_stored), default=0)
        self._scratch = lane.allocate(scratch_bytes)
        self._pinned = pinned
        self._staging = staging
        size_bytes = max(max(image.size_bytes, image.stored_bytes) for image in images.values())
        now = lane.mark()
        buffers = [
            _DeviceSlot(lane.allocate(size_bytes), now, now) for _ in range(min(slots, len(images)))
        ]
        self._ring = Ring(ThreadedReads(self._fill), list(images), buffers)

    @property
    def counts(self) -> RingCounts:
        """Return what the streaming has done; waits are those for a copy to be asked for."""
        return self._ring.counts

    @contextmanager
    def lease(self, group: int) -> Iterator[Tensors]:
        """Return a group on the device, for what is computed while the context is open."""
        image = self._images[group]
        with self._ring.lease(group) as slot:
            self._lane.wait(slot.copied)
            try:
                if group in self._pinned or image.is_stored:
                    yield image.view(slot.memory)
                else:
                    image.write(self._scratch, slot.memory[: image.stored_bytes])
                    yield image.view(self._scratch)
            finally:
                slot.used = self._lane.mark()

    def close(self) -> None:
        """Cancel reads, wait for copies. A second call does nothing."""
        if self._staging is not None:
            self._staging.close()
        self._ring.close()

    def _fill(self, group: int, slot: _DeviceSlot, control: object) -> None:
        """Ask for the copy of a group; there is nothing to cancel about that."""
        image, source = self._images[group], self._pinned.get(group)
        if source is not None:
            target = slot.memory[: image.size_bytes]
            slot.copied = self._lane.copy(target, source[: len(target)], after=slot.used)
            return
        target = slot.memory[: image.stored_bytes]
        assert self._staging is not None, "what is not in memory is staged"
        with self._staging.lease(group) as buffer:
            staged = from_dlpack(buffer)[: len(target)]
            slot.copied = self._lane.copy(target, staged, after=slot.used)
            self._lane.finish(slot.copied)  # The staging buffer is read into again.
