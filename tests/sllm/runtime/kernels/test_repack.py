"""Planes say what the file said."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.kernels.layout import numbers
from tests.sllm.runtime.kernels.plane_cases import SCHEMES, make_case


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", range(3))
def test_every_number_is_the_stored_one_in_every_bit(scheme: str, seed: int) -> None:
    stored, planes = make_case(scheme, seed=seed)
    expected = stored.dequantize(torch.float32)
    assert torch.equal(numbers(planes).view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_planes_take_no_more_than_three_hundredths_beyond_the_file(scheme: str) -> None:
    stored, planes = make_case(scheme)
    assert planes.shape == stored.shape
    assert stored.size_bytes <= planes.size_bytes <= 1.03 * stored.size_bytes
