"""ExpertImages: how experts lie in slots on a device, and what computes with all of them at once.

Quantised experts are laid out in planes. A checkpoint may have them so already; others are laid out
by the device when they arrive, each of the same kind in the same way, so that one launch of a
kernel finds the planes of any expert of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sllm.runtime.quant.dense import Dense
from sllm.runtime.quant.moving import place_dense
from sllm.runtime.quant.planar import PlanarMatrix
from sllm.runtime.weights.images import Image
from sllm.runtime.weights.source import Expert

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sllm.runtime.kernels.layout import Planes
    from sllm.runtime.quant.matrix import Matrix
    from sllm.runtime.weights.eviction import ExpertKey
    from sllm.runtime.weights.model_groups import ExpertKind, ModelGroups

_PROJECTIONS = ("gate", "up", "down")


@dataclass(frozen=True, slots=True)
class ExpertPlanes:
    """The planes of the three matrices of an expert."""

    gate: Planes
    up: Planes
    down: Planes


class ExpertImages:
    """The layouts of a model's experts."""

    def __init__(self, model: ModelGroups) -> None:
        self._model = model
        self._kinds: dict[ExpertKey, ExpertKind] = {}
        self._images: dict[ExpertKind, Image] = {}
        self._layers: dict[int, list[ExpertKey]] = {}
        for key in model.experts:
            self._layers.setdefault(key.layer, []).append(key)
            kind = self._kinds[key] = model.kind_of(key)
            if kind not in self._images:
                nowhere = torch.empty(model.slot_bytes, dtype=torch.uint8, device="meta")
                self._images[kind] = Image(_tensors(model.assemble_expert(key, nowhere)))

    @property
    def slot_bytes(self) -> int:
        """Return what a slot takes that has an expert as it is stored, then as it is used."""
        laid_out = [image.size_bytes for image in self._images.values() if not image.is_stored]
        return max([self._model.slot_bytes, *laid_out])

    @property
    def are_stored(self) -> bool:
        """Return whether every expert is stored as it is used."""
        return all(image.is_stored for image in self._images.values())

    @property
    def scratch_bytes(self) -> int:
        """Return what laying an expert out takes beside its slot; 0 if none has to be."""
        sizes = [image.size_bytes for image in self._images.values() if not image.is_stored]
        return max(sizes, default=0)

    def lay_out(self, key: ExpertKey, slot: torch.Tensor, scratch: torch.Tensor) -> None:
        """Lay an expert out in its slot, where it is as it is stored."""
        image = self._images[self._kinds[key]]
        if not image.is_stored:
            image.write(scratch, _tensors(self._model.assemble_expert(key, slot)))
            slot[: image.size_bytes].copy_(scratch[: image.size_bytes])

    def view(self, key: ExpertKey, slot: torch.Tensor) -> Expert:
        """Return an expert over its slot, where it is laid out."""
        image = self._images[self._kinds[key]]
        if image.is_stored:
            return self._model.assemble_expert(key, slot)
        return _expert(image.view(slot))

    def common_planes(self, layer: int, slot: torch.Tensor) -> ExpertPlanes | None:
        """Return the planes of any expert of a layer in a slot; None if they are not alike."""
        keys = self._layers[layer]
        first = keys[0]
        if any(self._kinds[key] != self._kinds[first] for key in keys):
            return None
        if self._images[self._kinds[first]].is_stored and not self._model.are_placed_alike(keys):
            return None
        expert = self.view(first, slot)
        gate, up, down = expert.gate, expert.up, expert.down
        if not (
            isinstance(gate, PlanarMatrix)
            and isinstance(up, PlanarMatrix)
            and isinstance(down, PlanarMatrix)
            and gate.planes.low.shape == up.planes.low.shape
        ):
            return None
        return ExpertPlanes(gate.planes, up.planes, down.planes)


def _tensors(expert: Expert) -> dict[str, torch.Tensor | Matrix]:
    matrices = zip(_PROJECTIONS, (expert.gate, expert.up, expert.down), strict=True)
    return {
        name: matrix.values if isinstance(matrix, Dense) else matrix for name, matrix in matrices
    }


def _expert(tensors: Mapping[str, torch.Tensor | Matrix]) -> Expert:
    gate, up, down = (tensors[name] for name in _PROJECTIONS)
    return Expert(_matrix(gate), _matrix(up), _matrix(down))


def _matrix(stored: torch.Tensor | Matrix) -> Matrix:
    return place_dense(stored) if isinstance(stored, torch.Tensor) else stored
