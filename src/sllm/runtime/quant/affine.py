"""AffineQ4: MLX's layout of four-bit weights, with a scale and a bias for each group of a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from torch.nn import functional

from sllm.runtime.config.families import AFFINE_GROUPS
from sllm.runtime.quant.blockwise import multiply_blockwise
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence

_PER_WORD = 8


class AffineQ4:
    """scale * n + bias. Words of 32 bits have eight nibbles n each, the lowest bits first."""

    def __init__(self, words: torch.Tensor, scales: torch.Tensor, biases: torch.Tensor) -> None:
        self._words = words
        self._scales = scales
        self._biases = biases

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

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """Return x times the transpose."""
        return multiply_blockwise(x, self)

    def embed(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return some rows as numbers; decodes those alone."""
        tensors = (self._words, self._scales, self._biases)
        return AffineQ4(*(functional.embedding(ids, tensor) for tensor in tensors)).dequantize(
            dtype
        )

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


def _shape(tensor: torch.Tensor) -> Sequence[int]:
    return tuple(tensor.shape)
