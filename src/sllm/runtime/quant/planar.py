"""PlanarMatrix: a quantised matrix in the planes that a GPU reads, and what computes with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch.nn import functional

from sllm.runtime.kernels import layout
from sllm.runtime.quant.blockwise import multiply_blockwise

if TYPE_CHECKING:
    import torch

    from sllm.runtime.kernels.layout import Planes


class Arithmetic(Protocol):
    """How planes are multiplied and decoded, where they are."""

    def multiply(self, x: torch.Tensor, matrix: PlanarMatrix) -> torch.Tensor:
        """Return x times the transpose, in x's dtype."""

    def dequantize(
        self, planes: Planes, dtype: torch.dtype, ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the numbers of all rows, or of some."""


class PlanarMatrix:
    """A matrix over planes, on a GPU or on the CPU; see `sllm.runtime.kernels.layout`."""

    def __init__(self, planes: Planes, arithmetic: Arithmetic | None = None) -> None:
        self.planes = planes
        self._arithmetic = arithmetic or _arithmetic_on(planes.low.device)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, in weights."""
        return self.planes.shape

    @property
    def size_bytes(self) -> int:
        """Bytes of all planes."""
        return self.planes.size_bytes

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """Return x times the transpose."""
        return self._arithmetic.multiply(x, self)

    def embed(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return some rows as numbers; decodes those alone."""
        return self._arithmetic.dequantize(self.planes, dtype, ids)

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """Return all of it as numbers."""
        return self._arithmetic.dequantize(self.planes, dtype)

    def part(self, start: int, stop: int) -> PlanarMatrix:
        """Return some rows."""
        rows = self.planes.map(lambda plane: plane[start:stop])
        return PlanarMatrix(rows, self._arithmetic)


class PlainArithmetic:
    """PyTorch's operations, on any device: what the kernels are held against."""

    def multiply(self, x: torch.Tensor, matrix: PlanarMatrix) -> torch.Tensor:
        """Decode a few rows at a time, and multiply by them."""
        return multiply_blockwise(x, matrix)

    def dequantize(
        self, planes: Planes, dtype: torch.dtype, ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the numbers of all rows, or of some."""
        if ids is not None:
            planes = planes.map(lambda plane: plane.index_select(0, ids))
        return layout.numbers(planes).to(dtype)


class KernelArithmetic:
    """Triton's kernels: which one depends on how many tokens there are."""

    def __init__(self) -> None:
        from sllm.runtime.kernels import column_products, fixed_products, products

        self._products, self._fixed = products, fixed_products
        self._columns = column_products

    def multiply(self, x: torch.Tensor, matrix: PlanarMatrix) -> torch.Tensor:
        """Read the planes once for few tokens; for many, decode what stays in the cache."""
        products = self._products
        flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])  # What is beside x is by object.
        if not 0 < len(flat) <= products.MOST_GEMM_TOKENS:
            return functional.linear(x, matrix.dequantize(x.dtype))
        found: torch.Tensor
        if self._columns.fits_columns(flat, matrix.planes):
            found = self._columns.multiply_columns(flat, matrix.planes)
        elif self._fixed.fits_fixed(flat, matrix.planes):
            found = self._fixed.multiply_fixed(flat, matrix.planes)
        elif len(flat) > products.MOST_GEMV_TOKENS:
            found = products.multiply_planar_tiles(flat, matrix.planes)
        else:
            found = products.multiply_planar(flat, matrix.planes)
        return found.view(*x.shape[:-1], -1)

    def dequantize(
        self, planes: Planes, dtype: torch.dtype, ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the numbers of all rows, or of some."""
        found: torch.Tensor = self._products.dequantize(planes, dtype, ids)
        return found


def _arithmetic_on(device: torch.device) -> Arithmetic:
    return KernelArithmetic() if device.type == "cuda" else PlainArithmetic()
