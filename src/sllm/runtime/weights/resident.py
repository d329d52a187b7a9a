"""ResidentWeights: every layer in memory, for as long as the model is."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, TypeVar

from sllm.runtime.weights.assembly import assemble_ends, assemble_layer
from sllm.runtime.weights.names import split_name
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    import torch

    from sllm.runtime.config.model import ModelConfig
    from sllm.runtime.quant.matrix import Matrix
    from sllm.runtime.weights.source import Weights

_T = TypeVar("_T")


class ResidentWeights:
    """A WeightSource that has everything."""

    def __init__(self, ends: Weights, layers: Sequence[Weights]) -> None:
        self._ends = ends
        self._layers = tuple(layers)

    @classmethod
    def of(
        cls, config: ModelConfig, tensors: Mapping[str, torch.Tensor | Matrix]
    ) -> ResidentWeights:
        """Return the weights of a model out of tensors with Hugging Face's names, not copied."""
        ends, layers = group_tensors(config, tensors)
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


def group_tensors(
    config: ModelConfig, tensors: Mapping[str, _T]
) -> tuple[dict[str, _T], list[dict[str, _T]]]:
    """Return what is around the layers, and what is in each layer, by names without prefix."""
    ends: dict[str, _T] = {}
    layers: list[dict[str, _T]] = [{} for _ in config.layers]
    for name, tensor in tensors.items():
        found = split_name(name)
        if found is None:
            continue
        layer, rest = found
        if layer is not None and layer >= len(layers):
            raise InvalidCheckpointError(
                f"the tensor {name} is of layer {layer}, and config.json says {len(layers)} layers"
            )
        group = ends if layer is None else layers[layer]
        if rest in group:
            raise InvalidCheckpointError(f"the tensor {name} is there twice, under two prefixes")
        group[rest] = tensor
    return ends, layers
