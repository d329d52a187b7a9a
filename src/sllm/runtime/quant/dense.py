"""Dense: a matrix of floats, stored as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional

from sllm.runtime.quant.blockwise import multiply_blockwise

if TYPE_CHECKING:
    import torch


class Dense:
    """A float matrix. It multiplies in the dtype of x, cast a block of rows at a time."""

    def __init__(self, values: torch.Tensor) -> None:
        assert values.dim() == 2
        self.values = values

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.values.shape
        return rows, columns

    @property
    def size_bytes(self) -> int:
        """Bytes of all elements."""
        return self.values.numel() * self.values.element_size()

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """Return x times the transpose."""
        if x.dtype == self.values.dtype:
            return functional.linear(x, self.values)
        return multiply_blockwise(x, self)

    def embed(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return some rows."""
        return functional.embedding(ids, self.values).to(dtype)

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the numbers, without a copy where the dtype is theirs."""
        return self.values.to(dtype)

    def part(self, start: int, stop: int) -> Dense:
        """Return some rows."""
        return Dense(self.values[start:stop])
