"""How tokens are rotated, on the GPU: one launch where PyTorch takes eight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sllm.runtime.kernels.chains import chain_options
from sllm.runtime.kernels.device.rotations import turn_positions
from sllm.runtime.kernels.operands import Rotation
from sllm.runtime.kernels.shares import power_of_two

if TYPE_CHECKING:
    from sllm.runtime.kernels.operands import Frequencies


def rotate(positions: torch.Tensor, frequencies: Frequencies, dtype: torch.dtype) -> Rotation:
    """Return the rotation of tokens at positions (tokens,), computed in float32."""
    tokens, half = len(positions), len(frequencies.each)
    cos, sin = (torch.empty((tokens, half), dtype=dtype, device=positions.device) for _ in range(2))
    assert positions.is_contiguous()
    assert frequencies.each.is_contiguous()
    turn_positions[(tokens,)](
        cos,
        sin,
        positions,
        frequencies.each,
        frequencies.scale,
        half,
        block_half=power_of_two(half),
        num_warps=2,
        enable_fp_fusion=False,
        **chain_options(),
    )
    return Rotation(cos, sin, frequencies.interleaved)
