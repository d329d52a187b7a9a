"""A float matrix multiplies and embeds, in the dtype of what it is given."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.quant import blockwise
from sllm.runtime.quant.dense import Dense


@pytest.fixture
def values() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(37, 16)


def test_it_is_a_linear_layer_and_an_embedding(values: torch.Tensor) -> None:
    matrix, x = Dense(values), torch.randn(3, 16)
    assert matrix.shape == (37, 16)
    assert matrix.size_bytes == 37 * 16 * 4
    assert torch.equal(matrix.linear(x), x @ values.T)
    assert torch.equal(matrix.embed(torch.tensor([3, 3, 36]), x.dtype), values[[3, 3, 36]])
    assert torch.equal(matrix.part(5, 9).dequantize(x.dtype), values[5:9])


def test_another_dtype_is_cast_a_block_of_rows_at_a_time(
    values: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockwise, "BLOCK_ELEMENTS", 5 * 16)
    matrix, x = Dense(values.bfloat16()), torch.randn(3, 16)
    expected = x @ values.bfloat16().float().T
    torch.testing.assert_close(matrix.linear(x), expected)
    assert matrix.linear(x).dtype == torch.float32
