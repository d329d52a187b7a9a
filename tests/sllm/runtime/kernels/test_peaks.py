"""A row's peak is the greatest of its logits, and the first token that has it, as PyTorch's is."""

from __future__ import annotations

import math

import pytest
import torch

from sllm.runtime.kernels.peaks import peaks, widen

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def _require_peaks_of(logits: torch.Tensor) -> None:
    values, tokens = logits.max(dim=-1)
    found = peaks(logits)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found[0], values.double(), rtol=0, atol=0, equal_nan=True)
    assert found[1].tolist() == tokens.tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 50, 2048, 5000])
def test_peaks_are_those_of_pytorch(width: int, dtype: torch.dtype, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(width)
    logits = torch.randn(3, width, generator=generator).to(device, dtype)
    for rows in (logits, -logits.abs() - 1, logits[:0]):
        _require_peaks_of(rows)


def test_the_first_of_equals_is_the_peak_whatever_the_sign_of_zero(device: torch.device) -> None:
    logits = torch.full((4, 5000), -1.0, device=device)
    logits[0, [4, 4700]] = 7.0
    logits[1, 2100], logits[1, 4100] = -0.0, 0.0
    logits[2] = -math.inf
    logits[3, 4999] = math.inf
    found = peaks(logits)
    assert found.tolist() == [[7.0, 0.0, -math.inf, math.inf], [4, 2100, 0, 4999]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_is_the_peak(dtype: torch.dtype, device: torch.device) -> None:
    logits = torch.zeros(2, 5000, device=device, dtype=dtype)
    logits[0, 70] = math.inf
    logits[0, [3000, 4000]] = math.nan
    logits[1, 70] = -math.nan
    _require_peaks_of(logits)
    assert peaks(logits)[0].isnan().all()


def test_rows_may_be_apart(device: torch.device) -> None:
    wide = torch.randn(4, 6000, generator=torch.Generator().manual_seed(0)).to(device)
    _require_peaks_of(wide[::2, :5000])


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_that_are_widened_are_a_copy_with_the_same_peaks(
    dtype: torch.dtype, device: torch.device
) -> None:
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    logits[1, 9] = math.nan
    for given in (logits[:2], logits[:0], logits):
        wide = widen(given)
        torch.testing.assert_close(wide, given.float(), rtol=0, atol=0, equal_nan=True)
        _require_peaks_of(wide)
        _require_peaks_of(wide[1:])
    before, wide = logits.float().clone(), widen(logits)
    logits.zero_()
    torch.testing.assert_close(wide, before, rtol=0, atol=0, equal_nan=True)
    _require_peaks_of(wide)
