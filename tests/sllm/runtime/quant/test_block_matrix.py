"""Bytes that are no whole matrix are refused."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.quant.gguf_blocks import Q4_0
from sllm_store.errors import InvalidCheckpointError


@pytest.mark.parametrize(("count", "columns"), [(36, 32), (18, 16), (35, 64), (0, 32)])
def test_bytes_that_do_not_fit_the_shape_are_refused(count: int, columns: int) -> None:
    with pytest.raises(InvalidCheckpointError, match=f"{count} bytes are no Q4_0 matrix"):
        Q4_0.of(torch.zeros(count, dtype=torch.uint8), rows=1, columns=columns)


def test_a_matrix_is_a_view_of_its_bytes() -> None:
    raw = torch.zeros(36, dtype=torch.uint8)
    matrix = Q4_0.of(raw, rows=2, columns=32)
    assert not matrix.dequantize(torch.float32).any()
    raw.fill_(60)  # 60 is a float16 above one, and three times four.
    assert matrix.dequantize(torch.float32).all()
