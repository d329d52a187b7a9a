"""DeviceDense: floats on a GPU, where a product of one token has a kernel of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm.runtime.kernels import products
from sllm.runtime.quant.dense import Dense

if TYPE_CHECKING:
    import torch


class DeviceDense(Dense):
    """A float matrix whose rows are whole loads of 16 bytes."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__(values)
        assert products.fits_dense(values)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """Return x times the transpose."""
        flat = x.reshape(-1, x.shape[-1])
        if len(flat) != 1 or x.dtype != self.values.dtype:
            return super().linear(x)
        return products.multiply_dense(flat, self.values).view(*x.shape[:-1], -1)

    def part(self, start: int, stop: int) -> DeviceDense:
        """Return some rows."""
        return DeviceDense(self.values[start:stop])
