"""Blocks that a kernel lays out are the planes that PyTorch's operations make of them."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.kernels.block_laying import write_planes
from sllm.runtime.quant.block_matrix import BlockMatrix
from tests.sllm.runtime.kernels.plane_cases import BLOCKS, make_case


@pytest.mark.parametrize("scheme", BLOCKS)
@pytest.mark.parametrize("rows", [1, 19])
def test_every_plane_is_the_same_in_every_bit(scheme: str, rows: int, device: torch.device) -> None:
    case = make_case(scheme, rows=rows, seed=rows)
    assert isinstance(case.stored, BlockMatrix)
    found = case.planes.map(lambda plane: torch.zeros_like(plane, device=device))
    write_planes(found, case.stored.raw.to(device), scheme)
    for name, plane in case.planes.tensors.items():
        own = found.tensors[name].cpu()
        assert torch.equal(own.view(torch.uint8), plane.view(torch.uint8)), name
