"""AffineQ4: MLX's layout of four-bit weights, with a scale and a bias for each group of a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from torch.nn import functional

from sllm.runtime.config.families import AFFINE_GROUPS
from sllm.runtime.quant.blockwise import multiply_blockwise
from sllm.runtime.quant.host_rows import HostRows, can_multiply, memory_of
from sllm_store.errors import InvalidCheckpointError
from sllm_store.products import affine_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

_PER_WORD = 8


class AffineQ4:
    """scale * n + bias. Words of 32 bits have eight nibbles n each, the lowest bits first."""

    def __init__(self, words: torch.Tensor, scales: torch.Tensor, biases: torch.Tensor) -> None:
        self._words = words
        self._scales = scales
        self._biases = biases
        alike = scales.dtype == biases.dtype
        self._host = self._host_rows() if alike and can_multiply(*self.tensors) else None

    @classmethod
    def of(cls, words: torch.Tensor, scales: torch.Tensor, biases: torch.Tensor) -> Self:
        """Return the matrix of three tensors; raise InvalidCheckpointError if they do not fit."""
        columns = words.shape[-1] * _PER_WORD
        groups = scales.shape[-1]
        fits = (
            words.dim() == 2
            and scales.shape == biases.shape == (len(words), groups)
            and groups > 0
            and columns % groups == 0
            and columns // groups in AFFINE_GROUPS
        )
        if not fits:
            raise InvalidCheckpointError(
                f"words {_shape(words)}, scales {_shape(scales)} and biases {_shape(biases)} are "
                f"no matrix in groups of {' or '.join(map(str, AFFINE_GROUPS))}"
            )
        return cls(words.view(torch.int32), scales, biases)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, in weights."""
        rows, words = self._words.shape
        return rows, words * _PER_WORD

    @property
    def size_bytes(self) -> int:
        """Bytes of words, scales and biases."""
        return self._words.nbytes + self._scales.nbytes + self._biases.nbytes

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Words, scales and biases."""
        return self._words, self._scales, self._biases

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
        found = (functional.embedding(ids, tensor) for tensor in self.tensors)
        return AffineQ4(*found).dequantize(dtype)

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """Return all of it as numbers, computed in float32."""
        shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=self._words.device)
        weights = ((self._words.unsqueeze(-1) >> shifts) & 0xF).float()
        grouped = weights.view(*self._scales.shape, -1)
        scaled = grouped * self._scales.float().unsqueeze(-1)
        return (scaled + self._biases.float().unsqueeze(-1)).view(self.shape).to(dtype)

    def part(self, start: int, stop: int) -> AffineQ4:
        """Return some rows."""
        rows = slice(start, stop)
        return AffineQ4(self._words[rows], self._scales[rows], self._biases[rows])

    def _host_rows(self) -> HostRows:
        rows, columns = self.shape
        found = affine_rows(
            [memory_of(tensor) for tensor in self.tensors],
            rows=rows,
            columns=columns,
            group=columns // self._scales.shape[-1],
            scale_type=str(self._scales.dtype).removeprefix("torch."),
        )
        return HostRows(found, self.tensors, self.shape)


def _shape(tensor: torch.Tensor) -> Sequence[int]:
    return tuple(tensor.shape)
