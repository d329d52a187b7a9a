"""The peak of each row of logits on the GPU: two launches of as many programs as the GPU can use.

PyTorch's maximum of one row of 128,256 logits is that of few programs, and takes many times as
long as the row takes to be read.
"""

from __future__ import annotations

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from sllm.runtime.kernels.chains import chain_options
from sllm.runtime.kernels.device.peaks import find_part_peaks, find_row_peaks
from sllm.runtime.kernels.shares import power_of_two

_PART = 2048  # Logits of a program.
_keys = WeakTensorKeyDictionary()


def widen(logits: torch.Tensor) -> torch.Tensor:
    """Return logits in float32, in memory of their own, which nobody changes.

    The first of the launches that `peaks` of them takes is what writes them.
    """
    wide = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    _keys[wide] = _find_keys(logits, wide)
    return wide


def peaks(logits: torch.Tensor) -> torch.Tensor:
    """Return each row's greatest logit, and the first token that has it: (2, rows), in float64.

    logits: (rows, tokens), in float32 or less. What is no number is greater than all numbers.
    """
    keys: torch.Tensor = _keys[logits] if logits in _keys else _find_keys(logits, None)
    rows, parts = keys.shape
    out = torch.empty((2, rows), dtype=torch.float64, device=logits.device)
    if rows:
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


def _find_keys(logits: torch.Tensor, wide: torch.Tensor | None) -> torch.Tensor:
    rows, width = logits.shape
    assert 0 < width < 2**31
    assert logits.stride(1) == 1
    parts = -(-width // _PART)
    keys = torch.empty((rows, parts), dtype=torch.int64, device=logits.device)
    if rows:
        find_part_peaks[(parts, rows)](
            keys,
            wide,
            logits,
            logits.stride(0),
            width,
            parts,
            block=_PART,
            num_warps=8,
            **chain_options(),
        )
    return keys
