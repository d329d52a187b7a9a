"""Sums that several programs share: who has which groups, room for shares, and their sum."""

from __future__ import annotations

import torch

from sllm.runtime.kernels.chains import chain_options
from sllm.runtime.kernels.device.partial_sums import add_shares

_ADDED_AT_ONCE = 256


def share_groups(groups: int, shares: int, step: int) -> tuple[int, int]:
    """Return the groups of each share, a multiple of a step, and how many shares there are."""
    each = -(-groups // (shares * step)) * step
    return each, -(-groups // each)


def make_room(x: torch.Tensor, shares: int, rows: int) -> torch.Tensor:
    """Return room for each share's sums; the result itself where one program has it all."""
    dtype = x.dtype if shares == 1 else torch.float32
    return torch.empty((shares, len(x), rows), dtype=dtype, device=x.device)


def add_up(partial: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the sum of the shares."""
    if len(partial) == 1:
        return partial[0]
    out = torch.empty(partial.shape[1:], dtype=dtype, device=partial.device)
    blocks = -(-out.numel() // _ADDED_AT_ONCE)
    add_shares[(blocks,)](
        out, partial, len(partial), out.numel(), block=_ADDED_AT_ONCE, **chain_options()
    )
    return out


def power_of_two(number: int) -> int:
    """Return the least power of two that is no less than a number."""
    return 1 << (number - 1).bit_length()
