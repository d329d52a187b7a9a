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
        self._inner = f"{prefix}.gate_proj", f"{prefix}.up_proj"
        self._outer = f"{prefix}.down_proj"

    def __call__(self, x: torch.Tensor, weights: Weights, passage: Passage) -> torch.Tensor:
        """Return what the MLP adds to the residual stream."""
        gate, up = weights.project_all(self._inner, x)
        return weights.project(self._outer, passage.operations.gate_up(gate, up))
