"""Native products of tensors: a token's numbers do not depend on its company."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.quant.gguf_blocks import Q4_1
from tests.sllm.runtime.quant.block_cases import COLUMNS, ROWS, random_bytes


@pytest.fixture
def matrix() -> Q4_1:
    return Q4_1.of(torch.from_numpy(random_bytes(Q4_1)).flatten(), rows=ROWS, columns=COLUMNS)


def test_a_batch_has_the_bits_of_its_tokens(matrix: Q4_1) -> None:
    x = torch.randn(9, COLUMNS)
    single = torch.cat([matrix.linear(token.unsqueeze(0)) for token in x])
    assert torch.equal(matrix.linear(x), single)
    assert torch.equal(matrix.linear(x[0]), single[0])
    assert matrix.linear(x[:0]).shape == (0, ROWS)


def test_rows_of_a_part_have_the_bits_of_the_whole(matrix: Q4_1) -> None:
    x = torch.randn(2, COLUMNS)
    assert torch.equal(matrix.part(3, 6).linear(x), matrix.linear(x)[:, 3:6])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_are_computed_in_float32_and_rounded_once(
    matrix: Q4_1, dtype: torch.dtype
) -> None:
    x = torch.randn(3, COLUMNS).to(dtype)
    found = matrix.linear(x)
    assert found.dtype == dtype
    assert torch.equal(found, matrix.linear(x.float()).to(dtype))


def test_x_may_be_a_strided_view(matrix: Q4_1) -> None:
    x = torch.randn(COLUMNS, 3).T
    assert torch.equal(matrix.linear(x), matrix.linear(x.contiguous()))


def test_an_id_that_is_no_row_is_refused(matrix: Q4_1) -> None:
    for wrong in (ROWS, -1):
        with pytest.raises(ValueError, match=f"no row {wrong}"):
            matrix.embed(torch.tensor([0, wrong]), torch.float32)
