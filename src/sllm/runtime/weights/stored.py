"""StoredWeights: a WeightSource over a checkpoint on disk, as much of it in memory as is allowed.

Resident and streamed weights come from the same reads into the same layout, so what is computed is
the same in every bit.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from sllm.runtime.weights.model_groups import ENDS, ModelGroups
from sllm.runtime.weights.placement import place_on_host
from sllm.runtime.weights.recurring import Recurring
from sllm.runtime.weights.residency import HOST_SLOTS, Budgets, plan_residency

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    import torch

    from sllm.runtime.quant.matrix import Matrix
    from sllm.runtime.weights.placement import Placement
    from sllm.runtime.weights.residency import Residency
    from sllm.runtime.weights.slots import Counts
    from sllm.runtime.weights.source import Weights
    from sllm_store.groups.ring import RingCounts


class StoredWeights:
    """The weights of one model on disk, for one forward pass at a time. Close it, or use it as a
    context, to end its reads.
    """

    def __init__(self, model: ModelGroups, residency: Residency, placement: Placement) -> None:
        self.config = model.config
        self.residency = residency
        self._model = model
        self._placement = placement
        self._ends = model.assemble_ends(placement.groups[ENDS])
        self._streamed: Recurring[Mapping[str, torch.Tensor | Matrix], Weights] = Recurring(
            max(1, len(residency.streamed) * residency.slots)
        )
        self._resident = {
            index: self._assemble(index, placement.groups[index + 1])
            for index in residency.resident
        }

    @classmethod
    def open(
        cls, path: Path, *, budget_bytes: int | None = None, slots: int = HOST_SLOTS
    ) -> StoredWeights:
        """Open a checkpoint of any format in host memory, and read what stays.

        budget_bytes: what the weights may take in memory; None for all. Raises BudgetError if that
        is too little, and for what cannot be computed UnsupportedModelError, before anything large
        is read.
        """
        model = ModelGroups.open(path)
        plan = plan_residency(model.needs(), Budgets(device_bytes=budget_bytes), slots=slots)
        return cls(model, plan, place_on_host(model, plan))

    def __enter__(self) -> StoredWeights:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def stays(self) -> bool:
        """Return whether no layer is streamed."""
        return not self.residency.streamed

    @property
    def ends(self) -> Weights:
        """Return the weights around the layers."""
        return self._ends

    @property
    def counts(self) -> RingCounts | None:
        """Return what the streaming of layers has done; None if every layer is resident."""
        return None if self._placement.layers is None else self._placement.layers.counts

    @property
    def expert_counts(self) -> Counts | None:
        """Return what the cache of experts has done; None if there are none, or all are there."""
        return self._placement.experts.counts

    @property
    def weight_bytes(self) -> int:
        """Return what all weights take, wherever they are."""
        return sum(layout.size_bytes for layout in self._model.reader.layouts)

    def layer_bytes(self, index: int) -> int:
        """Return what a layer takes in memory, without its experts."""
        return self._model.reader.size_bytes(index + 1)

    def layer(self, index: int) -> AbstractContextManager[Weights]:
        """Return a layer's weights; of a streamed one, for as long as the context is open."""
        resident = self._resident.get(index)
        return self._stream(index) if resident is None else nullcontext(resident)

    def close(self) -> None:
        """End the reads. A second call does nothing."""
        self._placement.close()

    @contextmanager
    def _stream(self, index: int) -> Iterator[Weights]:
        assert self._placement.layers is not None, "a layer is resident or streamed"
        with self._placement.layers.lease(index + 1) as tensors:
            yield self._streamed.get(tensors, lambda found: self._assemble(index, found))

    def _assemble(self, index: int, tensors: Mapping[str, torch.Tensor | Matrix]) -> Weights:
        return self._model.assemble_layer(index, tensors, self._placement.experts.layer(index))
