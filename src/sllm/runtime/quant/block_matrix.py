"""BlockMatrix: a matrix whose rows are whole blocks of bytes, kept as they are.

What a block says is a subclass's to know; here is what is the same for all: rows are found without
decoding others. On the CPU a product is native; elsewhere it decodes a few rows at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Self

from torch.nn import functional

from sllm.runtime.quant.blockwise import multiply_blockwise
from sllm.runtime.quant.host_rows import HostRows, can_multiply, memory_of
from sllm_store.errors import InvalidCheckpointError
from sllm_store.products import stored_rows

if TYPE_CHECKING:
    import torch


class BlockMatrix(ABC):
    """A quantised matrix over bytes: (rows, bytes of a row), of dtype uint8."""

    block_weights: ClassVar[int]
    block_bytes: ClassVar[int]

    def __init__(self, raw: torch.Tensor) -> None:
        assert raw.dim() == 2
        assert raw.element_size() == 1
        self.raw = raw
        self._host = self._host_rows() if can_multiply(raw) else None

    @classmethod
    def of(cls, raw: torch.Tensor, *, rows: int, columns: int) -> Self:
        """Return the matrix of flat bytes; raise InvalidCheckpointError if they do not fit."""
        blocks, rest = divmod(columns, cls.block_weights)
        if rest or raw.numel() != rows * blocks * cls.block_bytes:
            raise InvalidCheckpointError(
                f"{raw.numel()} bytes are no {cls.__name__} matrix of {rows} rows and {columns} "
                f"columns: a block has {cls.block_bytes} bytes for {cls.block_weights} columns"
            )
        return cls(raw.view(rows, blocks * cls.block_bytes))

    @staticmethod
    @abstractmethod
    def decode(blocks: torch.Tensor) -> torch.Tensor:
        """Return the numbers of (blocks, block_bytes) bytes: float32, (blocks, block_weights)."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, in weights."""
        rows, row_bytes = self.raw.shape
        return rows, row_bytes // self.block_bytes * self.block_weights

    @property
    def size_bytes(self) -> int:
        """Bytes of all blocks."""
        return self.raw.numel()

    @property
    def host_rows(self) -> HostRows | None:
        """Return what multiplies natively, if the matrix is where and what it should be."""
        return self._host

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """Return x times the transpose."""
        return multiply_blockwise(x, self) if self._host is None else self._host.linear(x)

    def embed(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return some rows as numbers; decodes those alone."""
        if self._host is not None:
            return self._host.embed(ids, dtype)
        return type(self)(functional.embedding(ids, self.raw)).dequantize(dtype)

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """Return all of it as numbers."""
        return self.decode(self.raw.reshape(-1, self.block_bytes)).view(self.shape).to(dtype)

    def part(self, start: int, stop: int) -> Self:
        """Return some rows."""
        return type(self)(self.raw[start:stop])

    def _host_rows(self) -> HostRows:
        rows, columns = self.shape
        scheme = type(self).__name__
        found = stored_rows(scheme, memory_of(self.raw), rows=rows, columns=columns)
        return HostRows(found, (self.raw,), self.shape)
