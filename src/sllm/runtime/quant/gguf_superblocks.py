"""GGUF's blocks of 256 weights, with scales of their own inside: Q4_K, Q5_K and Q6_K.

Equal to the gguf package in every bit.
"""

from __future__ import annotations

import torch

from sllm.runtime.quant.block_matrix import BlockMatrix
from sllm.runtime.quant.gguf_blocks import half_floats, nibbles

_SCALES_END = 16  # d, dmin, and twelve bytes of scales and minima.


class Q4_K(BlockMatrix):  # noqa: N801 - GGUF's name
    """float16 d and dmin; 8 scales s and minima m of 6 bits; nibbles n: d * s * n - dmin * m.

    Each 32 bytes of nibbles are two groups of 32 weights: the low halves, then the high ones.
    """

    block_weights = 256
    block_bytes = 144

    @staticmethod
    def decode(blocks: torch.Tensor) -> torch.Tensor:
        """Return d * s * n - dmin * m."""
        scale, minimum = _scales(blocks)
        low = nibbles(blocks[:, _SCALES_END:].reshape(-1, 4, 32)).view(-1, 8, 32)
        return (scale * low.float() - minimum).view(-1, 256)


class Q5_K(BlockMatrix):  # noqa: N801 - GGUF's name
    """As Q4_K, with a fifth bit per weight: bit g of byte j belongs to weight j of group g."""

    block_weights = 256
    block_bytes = 176

    @staticmethod
    def decode(blocks: torch.Tensor) -> torch.Tensor:
        """Return d * s * n - dmin * m."""
        scale, minimum = _scales(blocks)
        low = nibbles(blocks[:, _SCALES_END + 32 :].reshape(-1, 4, 32)).view(-1, 8, 32)
        groups = torch.arange(8, dtype=torch.uint8, device=blocks.device).view(1, 8, 1)
        high = (blocks[:, _SCALES_END : _SCALES_END + 32].unsqueeze(1) >> groups) & 1
        return (scale * (low | high << 4).float() - minimum).view(-1, 256)


class Q6_K(BlockMatrix):  # noqa: N801 - GGUF's name
    """128 bytes of low nibbles, 64 of high pairs of bits, 16 signed scales s, float16 d.

    d * s * (n - 32). The nibbles of 64 bytes and the pairs of 32 bytes make 128 weights.
    """

    block_weights = 256
    block_bytes = 210

    @staticmethod
    def decode(blocks: torch.Tensor) -> torch.Tensor:
        """Return d * s * (n - 32)."""
        low = nibbles(blocks[:, :128].reshape(-1, 2, 64)).view(-1, 2, 4, 32)
        shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device).view(1, 1, 4, 1)
        high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
        scale = half_floats(blocks[:, 208:]) * blocks[:, 192:208].view(torch.int8).float()
        weights = (low | high << 4).float() - 32
        return (scale.unsqueeze(-1) * weights.view(-1, 16, 16)).view(-1, 256)


def _scales(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return d * s and dmin * m of each group: (blocks, 8, 1).

    Four bytes each have the low six bits of s, those of m, or of the last four groups the low
    four of both; the upper bits of the first eight bytes are those groups' high ones.
    """
    first, second, third = blocks[:, 4:_SCALES_END].view(-1, 3, 4).unbind(1)
    scales = torch.cat((first & 0x3F, (third & 0x0F) | ((first >> 2) & 0x30)), dim=-1)
    minima = torch.cat((second & 0x3F, (third >> 4) | ((second >> 2) & 0x30)), dim=-1)
    scale = half_floats(blocks[:, :2]) * scales.float()
    minimum = half_floats(blocks[:, 2:4]) * minima.float()
    return scale.unsqueeze(-1), minimum.unsqueeze(-1)
