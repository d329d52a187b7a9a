"""Floats on a device multiply as they do in PyTorch, and so do their parts."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.quant.dense_device import DeviceDense


@pytest.mark.parametrize("tokens", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_products_are_those_of_the_values(tokens: int, dtype: torch.dtype) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    values = torch.randn(6, 64, device=device)
    x = torch.randn(1, tokens, 64, device=device).to(dtype)
    matrix = DeviceDense(values.to(torch.float32))
    expected = x.float() @ values.T
    found = matrix.linear(x)
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(matrix.part(2, 5).linear(x), found[..., 2:5], rtol=0, atol=tolerance)
