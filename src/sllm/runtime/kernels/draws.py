"""Draw a token from each row of logits on the GPU, in two launches after those of the peaks.

PyTorch's operations for temperature, top-k and top-p are some 25 launches over the vocabulary, and
ask the host twice what to do next. Here the likeliest few of a row are listed, and one is drawn of
what top-k, top-p and min-p leave of them; or, where neither top-k nor top-p is asked for, of all.
"""

from __future__ import annotations

import torch

from sllm.runtime.kernels.chains import chain_options
from sllm.runtime.kernels.device.draws import CAN_DRAW, draw_rows, weigh_parts
from sllm.runtime.kernels.peaks import peaks
from sllm.runtime.kernels.shares import power_of_two

TOP_MAX = 64 if CAN_DRAW else 0  # Of top-k, for which tokens are listed; 0 where Triton cannot.
ASKED = 5
_PART = 2048  # Logits of a program.


def draws(logits: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """Return peaks, tokens, and whether these are drawn, of each row: (4, rows), in float64.

    logits: (rows, tokens), in float32 or less. asked: (5, rows) in float64, on the device:
    temperature (0 for the peak's token), top-k (0 for none, up to TOP_MAX), top-p, min-p, and a
    number from 0 to below 1. A token that is not drawn is the peak's, and remains to be drawn: as
    where top-p leaves more tokens than are listed. A peak is its logit and its token.
    """
    rows, width = logits.shape
    assert rows > 0
    assert asked.shape == (ASKED, rows)
    found = peaks(logits)
    parts = -(-width // _PART)
    tops = torch.empty((rows, parts, TOP_MAX), dtype=torch.int64, device=logits.device)
    sums = torch.empty((rows, parts), dtype=torch.float64, device=logits.device)
    given = tops, sums, logits, found, asked, rows, logits.stride(0), width, parts
    sizes = {"block": _PART, "kept": TOP_MAX, "num_warps": 8}
    weigh_parts[(parts, rows)](*given, **sizes, **chain_options())
    out = torch.empty((4, rows), dtype=torch.float64, device=logits.device)
    draw_rows[(rows,)](out, *given, part_block=power_of_two(parts), **sizes, **chain_options())
    return out
