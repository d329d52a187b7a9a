"""Matrix: what a forward pass may do with a weight, whatever scheme it is stored in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Matrix(Protocol):
    """A weight of (rows, columns), a row per output. It may be a view of memory that is reused."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, in elements."""

    @property
    def size_bytes(self) -> int:
        """Bytes that the weight takes as it is stored."""

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """Return x times the transpose: (tokens, columns) to (tokens, rows), in x's dtype."""

    def embed(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return some rows as numbers: (tokens, columns). Reads those rows alone."""

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """Return all of it as numbers."""

    def part(self, start: int, stop: int) -> Matrix:
        """Return some rows as a matrix of the same scheme, without a copy."""
