"""Products with planes are the products with their numbers, to float32's rounding."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.kernels.launches import GemmLaunch, GemvLaunch
from sllm.runtime.kernels.layout import numbers
from sllm.runtime.kernels.products import (
    dequantize,
    multiply_dense,
    multiply_planar,
    multiply_planar_tiles,
)
from tests.sllm.runtime.kernels.plane_cases import SCHEMES, make_case
from tests.sllm.runtime.quant.block_cases import COLUMNS

TOLERANCE = 2e-5
ROUNDINGS = 2  # Triton's interpreter cuts bfloat16 off where a GPU rounds.


def _random(tokens: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(tokens)
    return torch.randn(tokens, COLUMNS, generator=generator).to(device, dtype)


def _require_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    error = (found.float() - expected).abs().max() / expected.abs().max()
    assert float(error) <= tolerance


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_product_with_planes_is_that_with_their_numbers(
    scheme: str, tokens: int, device: torch.device
) -> None:
    planes = make_case(scheme, rows=13).planes.map(lambda plane: plane.to(device))
    x = _random(tokens, device, torch.float32)
    found = multiply_planar(x, planes)
    _require_close(found, x @ numbers(planes).T, TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_product_has_the_type_of_x_and_is_rounded_once(
    dtype: torch.dtype, device: torch.device
) -> None:
    planes = make_case("Q4_1").planes.map(lambda plane: plane.to(device))
    x = _random(2, device, dtype)
    found = multiply_planar(x, planes)
    assert found.dtype == dtype
    _require_close(found, x.float() @ numbers(planes).T, ROUNDINGS * torch.finfo(dtype).eps)


@pytest.mark.parametrize("shares", [1, 3])
@pytest.mark.parametrize("rows", [1, 4])
def test_shares_of_a_row_add_up_however_it_is_cut(
    shares: int, rows: int, device: torch.device
) -> None:
    planes = make_case("Q8_0", rows=5).planes.map(lambda plane: plane.to(device))
    planes = planes.map(lambda plane: plane.repeat(1, 3, *[1] * (plane.dim() - 2)))
    x = _random(2, device, torch.float32).repeat(1, 3)
    launch = GemvLaunch(rows=rows, warps=1, shares=shares)
    found = multiply_planar(x, planes, launch)
    _require_close(found, x @ numbers(planes).T, TOLERANCE)
    assert torch.equal(found, multiply_planar(x, planes, launch))


def test_a_token_s_product_does_not_depend_on_its_neighbours(device: torch.device) -> None:
    planes = make_case("Q4_K").planes.map(lambda plane: plane.to(device))
    x = _random(2, device, torch.float32)
    launch = GemvLaunch(rows=4, warps=1)
    together = multiply_planar(x, planes, launch)
    alone = torch.cat([multiply_planar(row, planes, launch) for row in x.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_tiles_multiply_as_the_numbers_do(scheme: str, device: torch.device) -> None:
    planes = make_case(scheme, rows=19).planes.map(lambda plane: plane.to(device))
    x = _random(18, device, torch.float32)
    launch = GemmLaunch(rows=32, groups=8, tokens=16, shares=2)
    found = multiply_planar_tiles(x, planes, launch)
    _require_close(found, x @ numbers(planes).T, TOLERANCE)


def test_tiles_round_weights_to_the_type_of_x(device: torch.device) -> None:
    planes = make_case("Q4_1").planes.map(lambda plane: plane.to(device))
    x = _random(5, device, torch.float16)
    found = multiply_planar_tiles(x, planes)
    assert found.dtype == torch.float16
    expected = x.float() @ numbers(planes).half().float().T
    _require_close(found, expected, torch.finfo(torch.float16).eps)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_dequantised_numbers_are_equal_in_every_bit(scheme: str, device: torch.device) -> None:
    planes = make_case(scheme).planes.map(lambda plane: plane.to(device))
    found, expected = dequantize(planes, torch.float32), numbers(planes)
    assert torch.equal(found, expected)
    assert torch.equal(dequantize(planes, torch.float16), expected.half())


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_some_rows_are_dequantised_as_all_are(
    scheme: str, kind: torch.dtype, device: torch.device
) -> None:
    planes = make_case(scheme).planes.map(lambda plane: plane.to(device))
    ids = torch.tensor([planes.shape[0] - 1, 0, 2, 0], dtype=kind, device=device)
    for some in (ids, ids[1:2], ids[:0]):
        for dtype in (torch.float32, torch.float16):
            expected = numbers(planes)[some.long()].to(dtype)
            assert torch.equal(dequantize(planes, dtype, some), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dense_weights_multiply_one_token_as_in_float32_rounded_once(
    dtype: torch.dtype, device: torch.device
) -> None:
    x = _random(1, device, dtype)[:, :200].contiguous()
    weights = _random(11, device, dtype)[:, 40:240]
    found = multiply_dense(x, weights, GemvLaunch(rows=4, warps=1, shares=2))
    expected = x.float() @ weights.float().T
    _require_close(found, expected, max(ROUNDINGS * torch.finfo(dtype).eps, TOLERANCE))
