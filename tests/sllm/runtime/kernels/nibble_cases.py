"""What products with nibbles on the matrix units are tried with, and held against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sllm.runtime.kernels.layout import numbers
from tests.sllm.runtime.quant.block_cases import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sllm.runtime.kernels.layout import Planes

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


def require_same_however_cut(
    multiply: Callable[..., torch.Tensor], planes: Planes, x: torch.Tensor, launch: Any
) -> None:
    """Fail unless a launch has the product of rows three times as long, and its bits again."""
    planes = planes.map(lambda plane: plane.repeat(1, 3, *[1] * (plane.dim() - 2)))
    x = x.repeat(1, 3)
    found = multiply(x, planes, launch)
    require_close(found, x.float() @ numbers(planes).T, x.dtype)
    assert torch.equal(found, multiply(x, planes, launch))


def require_same_alone(
    multiply: Callable[..., torch.Tensor], planes: Planes, x: torch.Tensor, launch: Any
) -> None:
    """Fail unless each token has the bits that it has by itself."""
    alone = torch.cat([multiply(row, planes, launch) for row in x.split(1)])
    assert torch.equal(multiply(x, planes, launch), alone)


def require_same_anywhere(
    multiply: Callable[..., torch.Tensor], planes: Planes, x: torch.Tensor
) -> None:
    """Fail unless x may begin where no load of many bytes can."""
    moved = torch.cat((x.new_zeros(len(x), 3), x), dim=1)[:, 3:]
    assert torch.equal(multiply(moved, planes), multiply(x, planes))
