"""Bring a step's inputs to the GPU in one launch, with tokens that are there already.

A copy and another launch for the tokens would be between two steps, in which nothing else runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm.runtime.kernels.device.inputs import bring_numbers

if TYPE_CHECKING:
    import torch

_BLOCK = 256


def bring(target: torch.Tensor, source: torch.Tensor, tokens: torch.Tensor) -> None:
    """Write what a pinned source has, and tokens (count,) in the place of its first numbers.

    target and source: (total,), int32.
    """
    total, count = len(target), len(tokens)
    assert target.shape == source.shape
    assert count <= total
    assert tokens.is_contiguous()
    blocks = -(-total // _BLOCK)
    bring_numbers[(blocks,)](target, source, tokens, count, total, block=_BLOCK, num_warps=4)
