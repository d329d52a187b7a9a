"""Affine four-bit weights in MLX's layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sllm.runtime.quant.affine import AffineQ4
from sllm_store.errors import InvalidCheckpointError
from tests.sllm.runtime.quant.block_cases import require_matrix

ROWS, COLUMNS = 6, 256


def _tensors(group: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(-(2**31), 2**31, (ROWS, COLUMNS // 8), generator=generator)
    shape = (ROWS, COLUMNS // group)
    scales, biases = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    return words.to(torch.int32), scales, biases


@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_numbers_follow_from_the_formula_of_the_format(group: int, dtype: torch.dtype) -> None:
    words, scales, biases = _tensors(group, dtype)
    found = AffineQ4.of(words, scales, biases).dequantize(torch.float32)
    unsigned = words.numpy().view(np.uint32)
    for row in range(ROWS):
        for column in range(COLUMNS):
            nibble = int(unsigned[row, column // 8]) >> (4 * (column % 8)) & 15
            scale, bias = scales[row, column // group], biases[row, column // group]
            expected = float(scale) * nibble + float(bias)
            assert float(found[row, column]) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("group", [64, 128])
def test_it_is_a_matrix(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    require_matrix(AffineQ4.of(*_tensors(group, torch.float16)), monkeypatch)


def test_words_may_be_unsigned() -> None:
    words, scales, biases = _tensors(64, torch.float16)
    signed = AffineQ4.of(words, scales, biases).dequantize(torch.float32)
    unsigned = AffineQ4.of(words.view(torch.uint32), scales, biases).dequantize(torch.float32)
    assert torch.equal(signed, unsigned)


def test_tensors_that_do_not_fit_are_refused() -> None:
    words, scales, biases = _tensors(64, torch.float16)
    for wrong in (
        (words, scales[:, :3], biases[:, :3]),
        (words, scales, biases[:5]),
        (words[:5], scales, biases),
        (words, scales[:, :1], biases[:, :1]),
        (words, scales[:, :0], biases[:, :0]),
    ):
        with pytest.raises(InvalidCheckpointError, match="groups of 64 or 128"):
            AffineQ4.of(*wrong)
