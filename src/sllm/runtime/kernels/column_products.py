"""Products of some tokens with nibbles, tokens being the columns of the matrix units.

As `products`, for x of 16 bits: the numbers of nibbles are made once for all tokens, and a group of
32 columns costs two instructions of the units for each eight. x is laid out anew first, as lanes
load it, which is a launch of its own.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch

from sllm.runtime.kernels.chains import chain_options
from sllm.runtime.kernels.device.token_columns import arrange_tokens, token_columns
from sllm.runtime.kernels.launch_book import book_of
from sllm.runtime.kernels.launches import ColumnsLaunch, guess_columns, processors_of
from sllm.runtime.kernels.nibble_planes import HALVES, as_words, has_nibbles, has_units, span_of
from sllm.runtime.kernels.products import format_key
from sllm.runtime.kernels.shares import add_up, make_room, power_of_two, share_groups

if TYPE_CHECKING:
    from sllm.runtime.kernels.layout import Planes

FEWEST_COLUMN_TOKENS, MOST_COLUMN_TOKENS = 3, 64
_TOKENS_AT_ONCE = 8
_ROWS = 16
_ARRANGED_AT_ONCE = 4  # Groups.


def fits_columns(x: torch.Tensor, planes: Planes) -> bool:
    """Return whether the device has these units, and x and the planes are what they take."""
    few, most = FEWEST_COLUMN_TOKENS, MOST_COLUMN_TOKENS
    return few <= len(x) <= most and has_units(x) and has_nibbles(planes)


def multiply_columns(
    x: torch.Tensor, planes: Planes, launch: ColumnsLaunch | None = None
) -> torch.Tensor:
    """Return x times the transpose, for up to MOST_COLUMN_TOKENS tokens: (tokens, rows)."""
    tokens, (rows, groups, _) = len(x), planes.low.shape
    assert 0 < tokens <= MOST_COLUMN_TOKENS
    assert x.shape[1] == planes.shape[1]
    assert has_nibbles(planes)
    if launch is None:
        launch = _found(columns_key(planes, tokens), (rows, groups), tokens, x.device)
    eights = power_of_two(-(-tokens // _TOKENS_AT_ONCE))
    fragments = x.new_empty((groups, eights, 128), dtype=torch.int32)
    sums = x.new_empty((groups // 2, eights, 16), dtype=torch.float32)
    arrange_tokens[(-(-groups // _ARRANGED_AT_ONCE), eights)](
        fragments,
        sums,
        x.contiguous(),
        groups,
        tokens,
        block=_ARRANGED_AT_ONCE,
        num_warps=4,
        **chain_options(),
    )
    each, shares = share_groups(groups, launch.shares, launch.groups)
    partial = make_room(x, shares, rows)
    token_columns[(-(-rows // (_ROWS * launch.tiles * launch.tall)), shares)](
        partial,
        fragments,
        sums,
        planes.low,
        *as_words(planes, narrow=torch.int32),
        rows,
        groups,
        each,
        tokens,
        zero=planes.format.zero,
        span=span_of(planes),
        scaled=HALVES[planes.scales.dtype],
        half=x.dtype == torch.float16,
        eights=eights,
        tiles=launch.tiles,
        tall=launch.tall,
        deep=launch.deep,
        even=groups % launch.groups == 0,
        num_warps=launch.tall * launch.deep,
        enable_fp_fusion=True,
        **chain_options(),
    )
    return add_up(partial, x.dtype)


def columns_key(planes: Planes, tokens: int) -> str:
    """Return what a launch is remembered by; as many tokens as fit share one."""
    return f"columns {format_key(planes)} {power_of_two(tokens)}"


@cache
def _found(key: str, shape: tuple[int, int], tokens: int, device: torch.device) -> ColumnsLaunch:
    rows, groups = shape
    guess = guess_columns(rows, groups, tokens=tokens, processors=processors_of(device))
    return book_of(device).find(ColumnsLaunch, key) or guess
