"""A float matrix multiplies and embeds, in the dtype of what it is given."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

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
    matrix, x = Dense(values.bfloat16()), torch.randn(3, 16, dtype=torch.float64)
    expected = x @ values.bfloat16().double().T
    torch.testing.assert_close(matrix.linear(x), expected)
    assert matrix.linear(x).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(37, 16), (5, 1), (300, 261)])
def test_float32_times_sixteen_bits_is_what_torch_computes(
    dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    values, x = torch.randn(shape).to(dtype), torch.randn(2, 3, shape[1])
    found = Dense(values).linear(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, functional.linear(x, values.float()), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_token_times_sixteen_bits_has_the_same_bits_in_every_batch(dtype: torch.dtype) -> None:
    matrix, x = Dense(torch.randn(300, 261).to(dtype)), torch.randn(70, 261)
    alone = torch.cat([matrix.linear(token.unsqueeze(0)) for token in x])
    for count in (2, 5, 17, 70):
        assert torch.equal(matrix.linear(x[:count]), alone[:count])
    assert torch.equal(matrix.part(7, 90).linear(x), alone[:, 7:90])


def test_sixteen_bits_multiply_wherever_they_lie(values: torch.Tensor) -> None:
    half, x = values.bfloat16(), torch.randn(3, 16)
    strided = half.T.contiguous().T
    assert not strided.is_contiguous()
    torch.testing.assert_close(Dense(strided).linear(x), Dense(half).linear(x))
    assert Dense(half[:0]).linear(x).shape == (3, 0)
