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

from sllm_store.groups.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from sllm.runtime.weights.lane import Lane
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
        sizes: Mapping[int, int],
        *,
        slots: int,
        pinned: Mapping[int, torch.Tensor],
        staging: Ring[Any] | None,
    ) -> None:
        """Begin to copy groups in the order of `sizes`, which has the bytes of each.

        What is not in `pinned` host memory comes from disk by way of `staging`.
        """
        self._lane = lane
        self._sizes = sizes
        self._pinned = pinned
        self._staging = staging
        now = lane.mark()
        buffers = [
            _DeviceSlot(lane.allocate(max(sizes.values())), now, now)
            for _ in range(min(slots, len(sizes)))
        ]
        self._ring = Ring(self._fill, list(sizes), buffers)

    @property
    def counts(self) -> RingCounts:
        """Return what the streaming has done; waits are those for a copy to be asked for."""
        return self._ring.counts

    @contextmanager
    def lease(self, group: int) -> Iterator[torch.Tensor]:
        """Return a group on the device, for what is computed while the context is open."""
        with self._ring.lease(group) as slot:
            self._lane.wait(slot.copied)
            try:
                yield slot.memory
            finally:
                slot.used = self._lane.mark()

    def close(self) -> None:
        """Cancel reads, wait for copies. A second call does nothing."""
        if self._staging is not None:
            self._staging.close()
        self._ring.close()

    def _fill(self, group: int, slot: _DeviceSlot, control: object) -> None:
        """Ask for the copy of a group; there is nothing to cancel about that."""
        target = slot.memory[: self._sizes[group]]
        source = self._pinned.get(group)
        if source is not None:
            slot.copied = self._lane.copy(target, source[: len(target)], after=slot.used)
            return
        assert self._staging is not None, "what is not in memory is staged"
        with self._staging.lease(group) as buffer:
            staged = from_dlpack(buffer)[: len(target)]
            slot.copied = self._lane.copy(target, staged, after=slot.used)
            self._lane.finish(slot.copied)  # The staging buffer is read into again.
