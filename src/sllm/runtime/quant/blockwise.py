"""Multiply by a stored matrix a block of rows at a time: the whole is never there as numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from sllm.runtime.quant.matrix import Matrix

BLOCK_ELEMENTS = 1 << 20


def multiply_blockwise(x: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    """Return x times the transpose of a matrix, in x's dtype.

    What is in between takes BLOCK_ELEMENTS numbers, or one row.
    """
    rows, columns = matrix.shape
    step = max(BLOCK_ELEMENTS // columns, 1)
    out = torch.empty((*x.shape[:-1], rows), dtype=x.dtype, device=x.device)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        out[..., start:stop] = functional.linear(x, matrix.part(start, stop).dequantize(x.dtype))
    return out
