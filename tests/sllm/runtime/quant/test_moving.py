"""A matrix that was moved has the numbers of the one that was stored."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.quant.dense import Dense
from sllm.runtime.quant.moving import move_matrix
from sllm.runtime.quant.planar import PlanarMatrix
from tests.sllm.runtime.kernels.plane_cases import SCHEMES, make_case

CPU = torch.device("cpu")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_quantised_arrives_in_planes(scheme: str) -> None:
    stored = make_case(scheme).stored
    moved = move_matrix(stored, CPU)
    assert isinstance(moved, PlanarMatrix)
    assert torch.equal(moved.dequantize(torch.float32), stored.dequantize(torch.float32))
    again = move_matrix(moved, CPU)
    assert torch.equal(again.dequantize(torch.float32), stored.dequantize(torch.float32))


def test_floats_arrive_as_they_are() -> None:
    values = torch.randn(3, 8)
    assert torch.equal(move_matrix(Dense(values), CPU).dequantize(torch.float32), values)
