"""The gated MLP."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sllm.runtime.layers.passage import Passage
    from sllm.runtime.weights.source import Weights


class Mlp:
    """down(silu(gate(x)) * up(x)); `prefix` is the name of its three projections."""

    def __init__(self, prefix: str = "mlp") -> None:
        self._prefix = prefix

    def __call__(self, x: torch.Tensor, weights: Weights, passage: Passage) -> torch.Tensor:
        """Return what the MLP adds to the residual stream."""
        gate = weights.project(f"{self._prefix}.gate_proj", x)
        up = weights.project(f"{self._prefix}.up_proj", x)
        return weights.project(f"{self._prefix}.down_proj", passage.operations.gate_up(gate, up))
