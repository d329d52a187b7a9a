"""HostRows: a stored matrix in host memory that multiplies natively, from tensors to tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sllm_store.products import Memory, Rows


class HostRows:
    """A matrix on the CPU. Products are float32's, rounded to the dtype that is asked for.

    owners: the tensors with the bytes, which live as long as this does.
    """

    __slots__ = ("_columns", "_count", "_owners", "_rows")

    def __init__(
        self, rows: Rows, owners: tuple[torch.Tensor, ...], shape: tuple[int, int]
    ) -> None:
        self._rows = rows
        self._owners = owners
        self._count, self._columns = shape

    @property
    def rows(self) -> Rows:
        """Return the matrix for native code; it is valid for as long as this lives."""
        return self._rows

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """Return x times the transpose, in x's dtype."""
        wide = x.float().contiguous()
        tokens = wide.numel() // self._columns
        out = torch.empty((*x.shape[:-1], self._count))
        self._rows.multiply(memory_of(wide), tokens, memory_of(out), torch.get_num_threads())
        return out.to(x.dtype)

    def embed(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return some rows as numbers; ValueError for an id that is no row."""
        out = torch.empty((*ids.shape, self._columns))
        self._rows.decode(memory_of(ids.long().contiguous()), memory_of(out))
        return out.to(dtype)


def memory_of(tensor: torch.Tensor) -> Memory:
    """Return where a contiguous tensor's bytes are."""
    assert tensor.is_contiguous()
    return tensor.data_ptr(), tensor.nbytes


def can_multiply(*tensors: torch.Tensor) -> bool:
    """Whether native products can read these tensors."""
    return all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)
