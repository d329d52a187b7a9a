"""GGUF's blocks of 32 weights: Q4_0 to Q8_0. Equal to the gguf package in every bit.

The low four bits of a byte are a weight of the block's first half, the high ones of its second.
Fifth bits are in four bytes before those, the first weight's lowest. Files called Q4_K_M have them
where a row is no multiple of 256.
"""

from __future__ import annotations

import torch

from sllm.runtime.quant.block_matrix import BlockMatrix


class Q4_0(BlockMatrix):  # noqa: N801 - GGUF's name
    """float16 d; 16 bytes of nibbles n: d * (n - 8)."""

    block_weights = 32
    block_bytes = 18

    @staticmethod
    def decode(blocks: torch.Tensor) -> torch.Tensor:
        """Return d * (n - 8)."""
        return half_floats(blocks[:, :2]) * (nibbles(blocks[:, 2:]).float() - 8)


class Q4_1(BlockMatrix):  # noqa: N801 - GGUF's name
    """float16 d and m; 16 bytes of nibbles n: d * n + m."""

    block_weights = 32
    block_bytes = 20

    @staticmethod
    def decode(blocks: torch.Tensor) -> torch.Tensor:
        """Return d * n + m."""
        scale, minimum = half_floats(blocks[:, :2]), half_floats(blocks[:, 2:4])
        return scale * nibbles(blocks[:, 4:]).float() + minimum


class Q5_0(BlockMatrix):  # noqa: N801 - GGUF's name
    """float16 d; fifth bits; 16 bytes of nibbles, which make n: d * (n - 16)."""

    block_weights = 32
    block_bytes = 22

    @staticmethod
    def decode(blocks: torch.Tensor) -> torch.Tensor:
        """Return d * (n - 16)."""
        return half_floats(blocks[:, :2]) * (five_bits(blocks[:, 2:]).float() - 16)


class Q5_1(BlockMatrix):  # noqa: N801 - GGUF's name
    """float16 d and m; fifth bits; 16 bytes of nibbles, which make n: d * n + m."""

    block_weights = 32
    block_bytes = 24

    @staticmethod
    def decode(blocks: torch.Tensor) -> torch.Tensor:
        """Return d * n + m."""
        scale, minimum = half_floats(blocks[:, :2]), half_floats(blocks[:, 2:4])
        return scale * five_bits(blocks[:, 4:]).float() + minimum


class Q8_0(BlockMatrix):  # noqa: N801 - GGUF's name
    """float16 d; 32 signed bytes q: d * q."""

    block_weights = 32
    block_bytes = 34

    @staticmethod
    def decode(blocks: torch.Tensor) -> torch.Tensor:
        """Return d * q."""
        return half_floats(blocks[:, :2]) * blocks[:, 2:].view(torch.int8).float()


def half_floats(raw: torch.Tensor) -> torch.Tensor:
    """Return bytes (blocks, 2 * n) as n float16 each, in float32."""
    return raw.contiguous().view(torch.float16).float()


def nibbles(raw: torch.Tensor) -> torch.Tensor:
    """Return the low halves of each row's bytes, then the high ones."""
    return torch.cat((raw & 0x0F, raw >> 4), dim=-1)


def five_bits(raw: torch.Tensor) -> torch.Tensor:
    """Return weights of five bits, of rows of four bytes of fifth bits and 16 of nibbles."""
    bit = torch.arange(8, dtype=torch.uint8, device=raw.device)
    high = ((raw[:, :4].unsqueeze(-1) >> bit) & 1).flatten(1)
    return nibbles(raw[:, 4:]) | high << 4
