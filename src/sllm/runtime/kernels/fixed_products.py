"""Products of a token or two with nibbles in fixed point: y = x times the transpose.

As `products`, for what takes fewest instructions: the integer matrix units multiply nibbles
as they are, and x in fixed point, 32 columns under a scale of their own. Its integers have fifteen
bits, so no number of x is further off than 2 ** -15 of the largest of its 32: bfloat16's own
rounding is as much of a number 64 times smaller than that.

Bound by reading the planes, which begins before x is there.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from sllm.runtime.kernels.chains import chain_options
from sllm.runtime.kernels.device.planar_fixed import planar_fixed
from sllm.runtime.kernels.fixed_columns import MOST_FIXED_TOKENS, fixed, room_of, takes_fixed
from sllm.runtime.kernels.launch_book import book_of
from sllm.runtime.kernels.launches import FixedLaunch, guess_fixed, processors_of
from sllm.runtime.kernels.nibble_planes import has_nibbles, span_of
from sllm.runtime.kernels.products import format_key
from sllm.runtime.kernels.shares import add_up, make_room

if TYPE_CHECKING:
    import torch

    from sllm.runtime.kernels.layout import Planes

_ROWS = 16


def fits_fixed(x: torch.Tensor, planes: Planes) -> bool:
    """Return whether the device has these units, and x and the planes are what they take."""
    return takes_fixed(x) and has_nibbles(planes)


def multiply_fixed(
    x: torch.Tensor, planes: Planes, launch: FixedLaunch | None = None
) -> torch.Tensor:
    """Return x times the transpose, for up to MOST_FIXED_TOKENS tokens: (tokens, rows)."""
    tokens, (rows, groups, _) = len(x), planes.low.shape
    assert 0 < tokens <= MOST_FIXED_TOKENS
    assert x.shape[1] == planes.shape[1]
    assert has_nibbles(planes)
    if launch is None:
        launch = _found(fixed_key(planes, tokens), (rows, groups), tokens, x.device)
    passes, span = launch.passes(groups), span_of(planes)
    assert 4 * launch.unroll % span == 0
    whole = launch.groups * passes
    records = fixed(x, whole)
    partial = make_room(x, launch.shares, rows)
    planar_fixed[(-(-rows // (_ROWS * launch.tiles)), launch.shares)](
        partial,
        records,
        planes.low,
        planes.scales,
        planes.offsets,
        planes.steps,
        planes.floors,
        rows,
        groups,
        room_of(records),
        passes,
        zero=planes.format.zero,
        span=span,
        tokens=tokens,
        tiles=launch.tiles,
        unroll=launch.unroll,
        warps=launch.warps,
        even=groups == whole,
        num_warps=launch.warps,
        enable_fp_fusion=True,
        **({} if launch.registers is None else {"maxnreg": launch.registers}),
        **chain_options(),
    )
    return add_up(partial, x.dtype)


def fixed_key(planes: Planes, tokens: int) -> str:
    """Return what a launch is remembered by."""
    return f"fixed {format_key(planes)} {tokens}"


@cache
def _found(key: str, shape: tuple[int, int], tokens: int, device: torch.device) -> FixedLaunch:
    rows, groups = shape
    guess = guess_fixed(rows, groups, tokens=tokens, processors=processors_of(device))
    return book_of(device).find(FixedLaunch, key) or guess
