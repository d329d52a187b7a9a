"""KernelOperations: Triton's kernels for what a pass computes between products."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm.runtime.kernels import between, rotations
from sllm.runtime.layers.paged_steps import PagedSteps

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from sllm.runtime.batch import Span
    from sllm.runtime.kernels.operands import (
        Frequencies,
        HeadNorms,
        NewHeads,
        Norm,
        Places,
        Rotation,
    )


class KernelOperations:
    """Operations on a GPU; Triton's interpreter runs them on a CPU, in tests."""

    records = True

    def __init__(self, *, fixes: bool = False) -> None:
        """fixes: whether x is put in fixed point where it is made, for products with nibbles."""
        self.fixes = fixes

    def rotate(
        self, positions: torch.Tensor, frequencies: Frequencies, dtype: torch.dtype
    ) -> Rotation:
        """Return the rotation of tokens at positions, computed in float32."""
        return rotations.rotate(positions, frequencies, dtype)

    def normalise(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        """Return x normalised."""
        return between.normalise(x, norm, fixes=self.fixes)

    def add_normalised(
        self, x: torch.Tensor, added: torch.Tensor, norm: Norm
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x + added, and that normalised."""
        return between.add_normalised(x, added, norm, fixes=self.fixes)

    def place_heads(
        self, heads: NewHeads, norms: HeadNorms | None, rotation: Rotation, places: Places
    ) -> torch.Tensor:
        """Return the queries rotated, and put keys, rotated, and values into the cache."""
        return between.place_heads(heads, norms, rotation, places)

    def gate_up(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Return silu(gate) * up."""
        return between.gate_up(gate, up, fixes=self.fixes)

    def line_up(self, spans: Sequence[Span], device: torch.device) -> PagedSteps | None:
        """Have the tokens of all short spans attend in one launch."""
        short = [span for span in spans if span.is_short]
        return PagedSteps.of(short, device) if short else None
