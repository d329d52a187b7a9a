"""Experts from host memory into slots of a device; what the host does not have comes from disk."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from sllm.runtime.weights.eviction import ExpertKey
    from sllm.runtime.weights.expert_cache import ExpertCache
    from sllm.runtime.weights.expert_images import ExpertImages
    from sllm.runtime.weights.lane import Lane


class DeviceFetch:
    """Experts of one layer on their way; those that the host has are being copied already."""

    def __init__(
        self,
        lane: Lane[Any],
        host: ExpertCache[torch.Tensor],
        targets: Mapping[ExpertKey, torch.Tensor],
        lay_out: Callable[[ExpertKey, torch.Tensor], None],
    ) -> None:
        self._lane = lane
        self._targets = targets
        self._lay_out = lay_out
        self._marks: dict[ExpertKey, Any] = {}
        self._waited: set[ExpertKey] = set()
        self._now = lane.mark()
        (layer,) = {key.layer for key in targets}
        with ExitStack() as holding:
            leased = host.lease(layer, [key.number for key in targets])
            self._sources = holding.enter_context(leased)
            for key in targets:
                if key.number in self._sources.there:
                    self._copy(key)
            self._holding = holding.pop_all()

    def wait(self, key: ExpertKey) -> None:
        """Let what computes wait for an expert; raise if it could not be read."""
        if key not in self._marks:
            self._copy(key)
        if key not in self._waited:
            self._lane.wait(self._marks[key])
            self._lay_out(key, self._targets[key])
            self._waited.add(key)

    def end(self) -> Sequence[ExpertKey]:
        """Return the experts that the host did not have and nobody waited for."""
        for key in self._marks:
            self.wait(key)
        return [key for key in self._targets if key not in self._marks]

    def release(self) -> None:
        """Give the host's slots back, once the copies have ended. A second call does nothing."""
        for mark in self._marks.values():
            self._lane.finish(mark)
        self._holding.close()

    def _copy(self, key: ExpertKey) -> None:
        source = self._sources[key.number]
        target = self._targets[key][: len(source)]
        self._marks[key] = self._lane.copy(target, source, after=self._now)


class DeviceFetcher:
    """Slots on a device, over a cache in host memory.

    The host's slots of one fetch are given back when the next begins: by then its copies have ended
    long ago, and nobody has had to wait for them. An expert that is not stored as it is used is
    laid out in its slot when it is first waited for.
    """

    def __init__(
        self,
        lane: Lane[Any],
        host: ExpertCache[torch.Tensor],
        images: ExpertImages,
        slots: torch.Tensor,
    ) -> None:
        """slots: their memory on the device, (slots, bytes)."""
        self._lane = lane
        self._host = host
        self._images = images
        self._slots = slots
        self._scratch = lane.allocate(images.scratch_bytes)
        self._last: DeviceFetch | None = None
        self._as_used = images.are_stored

    def slot(self, slot: int) -> torch.Tensor:
        """Return a slot's bytes."""
        return self._slots[slot]

    def fetch(self, slots: Mapping[ExpertKey, int]) -> DeviceFetch:
        """Begin to copy experts into slots."""
        self.release()
        targets = {key: self.slot(slot) for key, slot in slots.items()}
        self._last = DeviceFetch(self._lane, self._host, targets, self._lay_out)
        return self._last

    def lay_out_all(self, keys: Sequence[ExpertKey]) -> None:
        """Have experts on the host as they are used, so that a copy is all that brings them.

        The host has all of them, and keeps them.
        """
        if self._as_used:
            return
        slot = self.slot(0)
        for key in keys:
            with self._host.lease(key.layer, [key.number]) as sources:
                source = sources[key.number]
                stored = slot[: len(source)]
                self._lane.finish(self._lane.copy(stored, source, after=self._lane.mark()))
                self._images.lay_out(key, slot, self._scratch)
                source.copy_(stored)
        self._as_used = True

    def release(self) -> None:
        """Wait for the copies of the last fetch and give the host's slots back."""
        last, self._last = self._last, None
        if last is not None:
            last.release()

    def _lay_out(self, key: ExpertKey, slot: torch.Tensor) -> None:
        if not self._as_used:
            self._images.lay_out(key, slot, self._scratch)
