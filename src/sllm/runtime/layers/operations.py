"""Operations: what a pass computes between products, as the device that it is on does it best.

They are chosen once, for a decoder. PyTorch's are what the others are held against.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch.nn import functional

from sllm.runtime.layers.norm import rms_norm

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
    from sllm.runtime.layers.paged_steps import PagedSteps


class Operations(Protocol):
    """What a pass computes between products. Tokens are rows: (tokens, width).

    records: whether a step of decoding may be recorded: it takes from tensors whatever differs.
    fixes: whether x is put in fixed point where it is made, for products with nibbles.
    """

    records: bool
    fixes: bool

    def rotate(
        self, positions: torch.Tensor, frequencies: Frequencies, dtype: torch.dtype
    ) -> Rotation:
        """Return the rotation of tokens at positions, computed in float32."""

    def normalise(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        """Return x normalised."""

    def add_normalised(
        self, x: torch.Tensor, added: torch.Tensor, norm: Norm
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x + added, and that normalised."""

    def place_heads(
        self, heads: NewHeads, norms: HeadNorms | None, rotation: Rotation, places: Places
    ) -> torch.Tensor:
        """Return the queries rotated, and put keys, rotated, and values into the cache."""

    def gate_up(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Return silu(gate) * up."""

    def line_up(self, spans: Sequence[Span], device: torch.device) -> PagedSteps | None:
        """Return the short spans, to attend all at once; None to attend span by span."""


class PlainOperations:
    """PyTorch's operations, on any device."""

    records = fixes = False

    def rotate(
        self, positions: torch.Tensor, frequencies: Frequencies, dtype: torch.dtype
    ) -> Rotation:
        """Return the rotation of tokens at positions, computed in float32."""
        return frequencies.rotate(frequencies.angles(positions), dtype)

    def normalise(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        """Return x normalised."""
        return rms_norm(x, norm.weight, epsilon=norm.epsilon, offset=norm.offset)

    def add_normalised(
        self, x: torch.Tensor, added: torch.Tensor, norm: Norm
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x + added, and that normalised."""
        total = x + added
        return total, self.normalise(total, norm)

    def place_heads(
        self, heads: NewHeads, norms: HeadNorms | None, rotation: Rotation, places: Places
    ) -> torch.Tensor:
        """Return the queries rotated, and put keys, rotated, and values into the cache."""
        query, key = heads.query, heads.key
        if norms is not None:
            query, key = self.normalise(query, norms.query), self.normalise(key, norms.key)
        query, key = rotation.apply(query), rotation.apply(key)
        places.keys.index_copy_(0, places.tokens, key.to(places.keys.dtype))
        places.values.index_copy_(0, places.tokens, heads.value.to(places.values.dtype))
        return query

    def gate_up(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Return silu(gate) * up."""
        return functional.silu(gate) * up

    def line_up(self, spans: Sequence[Span], device: torch.device) -> PagedSteps | None:
        """Have every span attend by itself."""
        return None


def operations_on(device: torch.device, *, fixes: bool) -> Operations:
    """Return what a device computes with. fixes: for products with nibbles."""
    if device.type != "cuda":
        return PlainOperations()
    from sllm.runtime.layers.kernel_operations import KernelOperations

    return KernelOperations(fixes=fixes)
