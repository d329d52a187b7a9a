"""Dense: a matrix of floats, stored as they are."""

from __future__ import annotations

import torch
from torch.nn import functional

from sllm.runtime.quant.blockwise import multiply_blockwise
from sllm.runtime.quant.host_rows import HostRows, can_multiply, memory_of
from sllm_store.products import stored_rows

_NATIVE = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


class Dense:
    """A float matrix. It multiplies in the dtype of x: natively where 16 bits on the CPU meet
    float32, else cast a block of rows at a time.
    """

    def __init__(self, values: torch.Tensor) -> None:
        assert values.dim() == 2
        self.values = values
        self._host = self._host_rows()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.values.shape
        return rows, columns

    @property
    def size_bytes(self) -> int:
        """Bytes of all elements."""
        return self.values.numel() * self.values.element_size()

    @property
    def host_rows(self) -> HostRows | None:
        """Return what multiplies natively, if the matrix is where and what it should be."""
        return self._host

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """Return x times the transpose."""
        if x.dtype == self.values.dtype:
            return functional.linear(x, self.values)
        if self._host is not None and x.dtype == torch.float32:
            return self._host.linear(x)
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

    def _host_rows(self) -> HostRows | None:
        scheme = _NATIVE.get(self.values.dtype)
        if scheme is None or not self.values.numel() or not can_multiply(self.values):
            return None
        rows, columns = self.shape
        found = stored_rows(scheme, memory_of(self.values), rows=rows, columns=columns)
        return HostRows(found, (self.values,), self.shape)
