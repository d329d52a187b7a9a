"""Placement: the bytes of a model where a plan has them, on the host alone."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch.utils.dlpack import from_dlpack

from sllm.runtime.weights.model_experts import open_host_experts
from sllm.runtime.weights.model_groups import ENDS
from sllm_store.groups.ring import open_ring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    import torch

    from sllm.runtime.quant.matrix import Matrix
    from sllm.runtime.weights.model_experts import ModelExperts
    from sllm.runtime.weights.model_groups import ModelGroups
    from sllm.runtime.weights.residency import Residency
    from sllm_store.groups.ring import Ring, RingCounts

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

    def __init__(self, model: ModelGroups, ring: Ring[Any]) -> None:
        self._model = model
        self._ring = ring
        self._views: dict[tuple[int, int], Tensors] = {}  # By group and buffer.
        self.counts = ring.counts

    @contextmanager
    def lease(self, group: int) -> Iterator[Tensors]:
        with self._ring.lease(group) as buffer:
            place = group, buffer.address
            if place not in self._views:
                self._views[place] = self._model.view(group, from_dlpack(buffer))
            yield self._views[place]


def place_on_host(model: ModelGroups, residency: Residency) -> Placement:
    """Read what stays, and begin to read what is streamed."""
    fixed = (ENDS, *(index + 1 for index in residency.resident))
    groups = {group: model.view(group, from_dlpack(model.reader.load(group))) for group in fixed}
    experts = open_host_experts(model, residency.expert_slots)
    order = [index + 1 for index in residency.streamed]
    if not order:
        return Placement(groups=groups, layers=None, experts=experts, close=experts.close)
    ring = open_ring(model.reader, order, slots=residency.slots)

    def close() -> None:
        ring.close()
        experts.close()

    return Placement(groups=groups, layers=_HostLayers(model, ring), experts=experts, close=close)
