"""What the operations between a layer's products are given: tensors that belong together."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """An RMSNorm: x / rms(x) * (weight + offset)."""

    weight: torch.Tensor
    epsilon: float
    offset: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NewHeads:
    """Heads of some tokens, as they were projected: (tokens, heads, head_dim).

    Tokens, and heads of queries, may be apart in memory.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadNorms:
    """What heads are normalised by before they are rotated."""

    query: Norm
    key: Norm


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where each token goes in a layer's keys and values, (places, kv_heads, head_dim).

    Kernels take a negative place for none.
    """

    keys: torch.Tensor
    values: torch.Tensor
    tokens: torch.Tensor


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosines and sines of each token of a batch: (tokens, rotated / 2)."""

    cos: torch.Tensor
    sin: torch.Tensor
    interleaved: bool

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Rotate (tokens, heads, head_dim); dimensions beyond the rotated ones pass."""
        width = 2 * self.cos.shape[-1]
        cos, sin = self.cos.unsqueeze(1), self.sin.unsqueeze(1)
        turned, rest = x[..., :width], x[..., width:]
        if self.interleaved:
            first, second = turned[..., 0::2], turned[..., 1::2]
            pairs = (first * cos - second * sin, second * cos + first * sin)
            rotated = torch.stack(pairs, dim=-1).flatten(-2)
        else:
            first, second = turned.chunk(2, dim=-1)
            rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return torch.cat((rotated, rest), dim=-1) if rest.shape[-1] else rotated


@dataclass(frozen=True, slots=True)
class Frequencies:
    """The angle of each pair of dimensions from one position to the next: (rotated / 2,).

    scale: what cosines and sines are multiplied by.
    """

    each: torch.Tensor
    scale: float
    interleaved: bool

    def angles(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the angles at positions, in float32: (tokens, rotated / 2)."""
        return positions.float().unsqueeze(-1) * self.each

    def rotate(self, angles: torch.Tensor, dtype: torch.dtype) -> Rotation:
        """Return the rotation by angles."""
        cos, sin = angles.cos() * self.scale, angles.sin() * self.scale
        return Rotation(cos.to(dtype), sin.to(dtype), self.interleaved)
