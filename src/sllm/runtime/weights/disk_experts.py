"""Experts from disk into slots of host memory: all that a lease misses in one joined read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.utils.dlpack import from_dlpack

from sllm_store.groups.background import BackgroundReads
from sllm_store.groups.layout import PAGE
from sllm_store.units import align_up

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from sllm.runtime.weights.eviction import ExpertKey
    from sllm.runtime.weights.model_groups import ModelGroups
    from sllm_store.groups.background import BackgroundRead


class DiskFetch:
    """Experts that are being read; all of them are there, or none is."""

    def __init__(self, read: BackgroundRead, keys: Sequence[ExpertKey]) -> None:
        self._read = read
        self._keys = keys

    def wait(self, key: ExpertKey) -> None:
        """Wait for the read; raise what it raised."""
        self._read.wait()

    def end(self) -> Sequence[ExpertKey]:
        """Return the experts that are not there, once nobody reads any more."""
        return () if self._read.abandon() else self._keys


class DiskFetcher:
    """Slots in host memory, read into by a thread of their own. Close it to end its reads.

    slot_bytes: a slot's, if experts take more than they do as they are stored.
    """

    def __init__(self, model: ModelGroups, slots: int, slot_bytes: int = 0) -> None:
        self.slot_bytes = align_up(max(slot_bytes, model.slot_bytes), PAGE)
        self._model = model
        self._reads = BackgroundReads(model.reader, slots * self.slot_bytes)
        self.memory: torch.Tensor = from_dlpack(self._reads.buffer)

    def slot(self, slot: int) -> torch.Tensor:
        """Return a slot's bytes."""
        start = slot * self.slot_bytes
        return self.memory[start : start + self.slot_bytes]

    def fetch(self, slots: Mapping[ExpertKey, int]) -> DiskFetch:
        """Begin to read experts into slots."""
        experts, slot_bytes = self._model.experts, self.slot_bytes
        places = [(experts[key], slot * slot_bytes) for key, slot in slots.items()]
        return DiskFetch(self._reads.begin(places), list(slots))

    def close(self) -> None:
        """Cancel the reads in flight and wait for them. A second call does nothing."""
        self._reads.close()
