"""The peak of each row of logits on the GPU: two launches of as many programs as the GPU can use.

PyTorch's maximum of one row of 128,256 logits is that of few programs, and takes many times as
long as the row takes to be read.
"""

from __future__ import annotations

import torch

from sllm.runtime.kernels.chains import chain_options
from sllm.runtime.kernels.device.peaks import find_part_peaks, find_row_peaks
from sllm.runtime.kernels.shares import power_of_two

_PART = 2048  # Logits of a program.


def peaks(logits: torch.Tensor) -> torch.Tensor:
    """Return each row's greatest logit, and the first token that has it: (2, rows), in float64.

    logits: (rows, tokens), in float32 or less. What is no number is greater than all numbers.
    """
    rows, width = logits.shape
    assert 0 < width < 2**31
    assert logits.stride(1) == 1
    out = torch.empty((2, rows), dtype=torch.float64, device=logits.device)
    if not rows:
        return out
    parts = -(-width // _PART)
    keys = torch.empty((rows, parts), dtype=torch.int64, device=logits.device)
    find_part_peaks[(parts, rows)](
        keys,
        logits,
        logits.stride(0),
        width,
        parts,
        block=_PART,
        num_warps=8,
        **chain_options(),
    )
    find_row_peaks[(rows,)](
        out,
        keys,
        rows,
        parts,
        block=power_of_two(parts),
        num_warps=1,
        **chain_options(),
    )
    return out
