"""Products of a few tokens with a weight on the GPU, read once: y = x times its transpose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sllm.runtime.kernels.device.partial_sums import add_shares
from sllm.runtime.kernels.device.planar_gemv import planar_gemv
from sllm.runtime.kernels.launches import GemvLaunch, guess_gemv, processors_of

if TYPE_CHECKING:
    from sllm.runtime.kernels.layout import Planes

MOST_GEMV_TOKENS = 4
_ONE = 0x3F800000  # The bits of 1.0. An argument, so that it stays in a register.
_ADDED_AT_ONCE = 256


def multiply_planar(
    x: torch.Tensor, planes: Planes, launch: GemvLaunch | None = None
) -> torch.Tensor:
    """Return x times the transpose, for up to MOST_GEMV_TOKENS tokens: (tokens, rows)."""
    tokens = len(x)
    rows, groups = planes.low.shape[:2]
    assert 0 < tokens <= MOST_GEMV_TOKENS
    assert x.shape[1] == planes.shape[1]
    launch = launch or guess_gemv(rows, groups, tokens=tokens, processors=processors_of(x.device))
    form = planes.format
    each = _round_up(-(-groups // launch.shares), launch.groups)
    shares = -(-groups // each)
    partial = _empty(x, shares, rows)
    planar_gemv[(-(-rows // launch.rows), shares)](
        partial,
        x.contiguous(),
        planes.low,
        planes.high,
        planes.scales,
        planes.offsets,
        planes.steps,
        planes.floors,
        rows,
        groups,
        each,
        tokens,
        _ONE,
        bits=form.bits,
        zero=form.zero,
        span=form.scale_columns // form.group,
        halves=form.halves,
        block_rows=launch.rows,
        block_groups=launch.groups,
        block_tokens=_power_of_two(tokens),
        even=groups % launch.groups == 0,
        stages=launch.stages,
        num_warps=launch.warps,
        enable_fp_fusion=True,
    )
    return _add(partial, x.dtype)


def _empty(x: torch.Tensor, shares: int, rows: int) -> torch.Tensor:
    """Return room for each share's sums; the result itself where one program has it all."""
    dtype = x.dtype if shares == 1 else torch.float32
    return torch.empty((shares, len(x), rows), dtype=dtype, device=x.device)


def _add(partial: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the sum of the shares."""
    if len(partial) == 1:
        return partial[0]
    out = torch.empty(partial.shape[1:], dtype=dtype, device=partial.device)
    blocks = -(-out.numel() // _ADDED_AT_ONCE)
    add_shares[(blocks,)](out, partial, len(partial), out.numel(), block=_ADDED_AT_ONCE)
    return out


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
