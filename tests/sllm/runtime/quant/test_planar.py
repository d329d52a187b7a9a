"""A matrix in planes is the matrix that was stored, whatever computes with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from sllm.runtime.quant.planar import KernelArithmetic, PlainArithmetic, PlanarMatrix
from tests.sllm.runtime.kernels.plane_cases import make_case
from tests.sllm.runtime.quant.block_cases import require_matrix

if TYPE_CHECKING:
    from sllm.runtime.quant.planar import Arithmetic

ARITHMETICS = pytest.mark.parametrize("arithmetic", [PlainArithmetic, KernelArithmetic])


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("scheme", ["Q4_0", "Q8_0", "Q6_K", "affine-64"])
def test_it_is_a_matrix(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require_matrix(PlanarMatrix(make_case(scheme).planes, PlainArithmetic()), monkeypatch)


@ARITHMETICS
@pytest.mark.parametrize("tokens", [0, 1, 5, 65])
def test_its_products_are_those_of_the_stored_matrix(
    arithmetic: type[Arithmetic], tokens: int, device: torch.device
) -> None:
    stored, planes = make_case("Q5_K")
    matrix = PlanarMatrix(planes.map(lambda plane: plane.to(device)), arithmetic())
    x = torch.randn(1, tokens, matrix.shape[1])
    expected = stored.linear(x)
    close = 2e-5 * float(expected.abs().max()) if tokens else 0.0
    found = matrix.linear(x.to(device)).cpu()
    torch.testing.assert_close(found, expected, rtol=0, atol=close)


@ARITHMETICS
def test_rows_and_parts_are_those_of_the_stored_matrix(
    arithmetic: type[Arithmetic], device: torch.device
) -> None:
    stored, planes = make_case("Q4_1")
    matrix = PlanarMatrix(planes.map(lambda plane: plane.to(device)), arithmetic())
    values = stored.dequantize(torch.float32).to(device)
    ids = torch.tensor([3, 0, 3], device=device)
    assert torch.equal(matrix.embed(ids, torch.float32), values[ids])
    assert torch.equal(matrix.part(2, 6).part(1, 3).dequantize(torch.float32), values[3:5])
