"""Rotations are those of PyTorch, at small positions and at large ones."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.kernels.operands import Frequencies
from sllm.runtime.kernels.rotations import rotate

POSITIONS = [0, 1, 2, 77, 4095, 65_537, 105_615, 105_616, 131_071, 131_072]
FLOAT_ERROR = 2.5e-7  # Two units in the last place of a number near 1.


def _frequencies(half: int, device: torch.device, *, scale: float = 1.0) -> Frequencies:
    each = 500_000.0 ** -(torch.arange(half, dtype=torch.float32) / half)
    return Frequencies(each.to(device), scale, interleaved=False)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
@pytest.mark.parametrize("half", [1, 24, 64])
def test_cosines_and_sines_are_exact_however_large_an_angle_is(
    half: int, kind: torch.dtype, device: torch.device
) -> None:
    positions = torch.tensor(POSITIONS, dtype=kind, device=device)
    frequencies = _frequencies(half, device)
    found = rotate(positions, frequencies, torch.float32)
    angles = frequencies.angles(positions).double()
    torch.testing.assert_close(found.cos.double(), angles.cos(), rtol=0, atol=FLOAT_ERROR)
    torch.testing.assert_close(found.sin.double(), angles.sin(), rtol=0, atol=FLOAT_ERROR)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_they_are_scaled_before_they_are_rounded_to_their_type(
    dtype: torch.dtype, device: torch.device
) -> None:
    positions = torch.tensor(POSITIONS, device=device)
    frequencies = _frequencies(64, device, scale=1.2)
    found = rotate(positions, frequencies, dtype)
    expected = frequencies.rotate(frequencies.angles(positions), dtype)
    assert found.cos.dtype == found.sin.dtype == dtype
    error = max(2 * FLOAT_ERROR, torch.finfo(dtype).eps)
    torch.testing.assert_close(found.cos, expected.cos, rtol=0, atol=error)
    torch.testing.assert_close(found.sin, expected.sin, rtol=0, atol=error)
    assert found.interleaved == expected.interleaved
