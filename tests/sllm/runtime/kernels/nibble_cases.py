"""What products with nibbles on the matrix units are tried with, and held against."""

from __future__ import annotations

import torch

from tests.sllm.runtime.quant.block_cases import COLUMNS

NIBBLES = ("Q4_0", "Q4_1", "Q4_K", "affine-64", "affine-128")
ROUNDINGS = 2  # Triton's interpreter cuts bfloat16 off where a GPU rounds.
H200 = 132


def random_tokens(tokens: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return x, (tokens, COLUMNS), the same for as many tokens each time."""
    generator = torch.Generator().manual_seed(tokens)
    return torch.randn(tokens, COLUMNS, generator=generator).to(device, dtype)


def require_close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Fail unless a product is that in float32 to its type's rounding."""
    assert found.dtype == dtype
    assert found.shape == expected.shape
    error = (found.float() - expected).abs().max() / expected.abs().max()
    assert float(error) <= ROUNDINGS * torch.finfo(dtype).eps
