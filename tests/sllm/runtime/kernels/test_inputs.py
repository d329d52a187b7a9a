"""A step's inputs are the host's, but for the tokens that are on the device."""

from __future__ import annotations

import pytest
import torch

from sllm.runtime.kernels.inputs import bring


@pytest.mark.parametrize(("total", "count"), [(192, 1), (320, 32), (1000, 300), (64, 64)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_tokens_are_in_the_place_of_the_first_numbers(
    total: int, count: int, dtype: torch.dtype, device: torch.device
) -> None:
    source = torch.arange(total, dtype=torch.int32)
    if device.type == "cuda":
        source = source.pin_memory()
    tokens = torch.arange(2 * count, device=device).to(dtype)[count:] + 100_000
    target = torch.full((total,), -1, dtype=torch.int32, device=device)
    bring(target, source, tokens)
    assert target.tolist() == [*map(int, tokens.tolist()), *range(count, total)]
