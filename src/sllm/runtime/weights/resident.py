"""ResidentWeights: every layer in memory, for as long as the model is."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from sllm.runtime.weights.assembly import assemble_ends, assemble_layer
from sllm.runtime.weights.names import group_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    import torch

    from sllm.runtime.config.model import ModelConfig
    from sllm.runtime.quant.matrix import Matrix
    from sllm.runtime.weights.source import Weights


class ResidentWeights:
    """A WeightSource that has everything."""

    stays = True

    def __init__(self, ends: Weights, layers: Sequence[Weights]) -> None:
        self._ends = ends
        self._layers = tuple(layers)

    @classmethod
    def of(
        cls, config: ModelConfig, tensors: Mapping[str, torch.Tensor | Matrix]
    ) -> ResidentWeights:
        """Return the weights of a model out of tensors with Hugging Face's names, not copied."""
        ends, layers = group_tensors(tensors, layers=len(config.layers))
        return cls(
            assemble_ends(config, ends),
            [assemble_layer(config, index, layer) for index, layer in enumerate(layers)],
        )

    @property
    def ends(self) -> Weights:
        """Return the weights around the layers."""
        return self._ends

    def layer(self, index: int) -> AbstractContextManager[Weights]:
        """Return a layer's weights."""
        return nullcontext(self._layers[index])
