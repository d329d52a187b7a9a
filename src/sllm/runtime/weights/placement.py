"""Placement: the bytes of a model where a plan has them, on the host alone."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch.utils.dlpack import from_dlpack

from sllm.runtime.weights.model_experts import open_host_experts
from sllm.runtime.weights.model_groups import ENDS
from sllm_store.groups.reads import Slot, open_reads
from sllm_store.groups.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    import torch

    from sllm.runtime.quant.matrix import Matrix
    from sllm.runtime.weights.model_experts import ModelExperts
    from sllm.runtime.weights.model_groups import ModelGroups
    from sllm.runtime.weights.residency import Residency
    from sllm_store.groups.ring import RingCounts

    Tensors = Mapping[str, torch.Tensor | Matrix]


class LayerStream(Protocol):
    """Gives groups that are not resident, in an order that repeats."""

    @property
    def counts(self) -> RingCounts:
        """Return what the streaming has done."""

    def lease(self, group: int) -> AbstractContextManager[Tensors]:
        """Return a group's tensors for as long as the context is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Groups that stay, by their index, and where the others come from. Close it to end reads."""

    groups: Mapping[int, Tensors]
    layers: LayerStream | None
    experts: ModelExperts
    close: Callable[[], None]


class _HostLayers:
    """Layers read from disk into host memory."""

    def __init__(self, memory: _Memory, ring: Ring[Slot]) -> None:
        self._memory = memory
        self._ring = ring
        self._views: dict[tuple[int, int], Tensors] = {}  # By group and place.
        self.counts = ring.counts

    @contextmanager
    def lease(self, group: int) -> Iterator[Tensors]:
        with self._ring.lease(group) as slot:
            key = group, slot.offset
            if key not in self._views:
                self._views[key] = self._memory.view(group, slot.offset)
            yield self._views[key]


class _Memory:
    """Groups one after another in one buffer, so that all but its end is in huge pages.

    A virtual disk that reads into small pages is three times as slow.
    """

    def __init__(self, model: ModelGroups, size_bytes: int) -> None:
        self.buffer = model.reader.allocate(size_bytes)
        self._raw = from_dlpack(self.buffer)
        self._model = model

    def view(self, group: int, place: int) -> Tensors:
        size_bytes = self._model.reader.size_bytes(group)
        return self._model.view(group, self._raw[place : place + size_bytes])


def place_on_host(model: ModelGroups, residency: Residency) -> Placement:
    """Read what stays, and begin to read what is streamed."""
    sizes = model.reader.size_bytes
    order = [index + 1 for index in residency.streamed]
    slot_bytes = max(map(sizes, order), default=0)
    end = residency.slots * slot_bytes
    places = {}
    for group in (ENDS, *(index + 1 for index in residency.resident)):
        places[group] = end
        end += sizes(group)
    memory = _Memory(model, end)
    model.reader.read_many(list(places.items()), memory.buffer)
    groups = {group: memory.view(group, place) for group, place in places.items()}
    experts = open_host_experts(model, residency.expert_slots)
    if not order:
        return Placement(groups=groups, layers=None, experts=experts, close=experts.close)
    slots = [Slot(memory.buffer, slot * slot_bytes) for slot in range(residency.slots)]
    ring = Ring(open_reads(model.reader, order), order, slots)

    def close() -> None:
        ring.close()
        experts.close()

    return Placement(groups=groups, layers=_HostLayers(memory, ring), experts=experts, close=close)
