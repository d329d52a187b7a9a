"""Products of tokens with a weight on the GPU: y = x times its transpose, the weight read once.

Each function is bound by rows * columns * bits / 8 bytes over the memory's bandwidth while tokens
are few; from some tens of tokens on by the matrix units.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from sllm.runtime.kernels.chains import chain_options
from sllm.runtime.kernels.device.dense_gemv import dense_gemv
from sllm.runtime.kernels.device.planar_gemm import planar_gemm
from sllm.runtime.kernels.device.planar_gemv import planar_gemv
from sllm.runtime.kernels.device.planar_numbers import dequantize_planes
from sllm.runtime.kernels.launch_book import book_of
from sllm.runtime.kernels.launches import (
    GemmLaunch,
    GemvLaunch,
    guess_dense,
    guess_gemm,
    guess_gemv,
    processors_of,
)
from sllm.runtime.kernels.shares import add_up, make_room, power_of_two, share_groups

if TYPE_CHECKING:
    from sllm.runtime.kernels.layout import Planes

MOST_GEMV_TOKENS = 4
MOST_GEMM_TOKENS = 64
_LOAD_BYTES = 16
ONE = 0x3F800000  # The bits of 1.0. An argument, so that it stays in a register.


def multiply_planar(
    x: torch.Tensor, planes: Planes, launch: GemvLaunch | None = None
) -> torch.Tensor:
    """Return x times the transpose, for up to MOST_GEMV_TOKENS tokens: (tokens, rows)."""
    tokens, (rows, groups, _) = len(x), planes.low.shape
    assert 0 < tokens <= MOST_GEMV_TOKENS
    assert x.shape[1] == planes.shape[1]
    if launch is None:
        launch = _found_gemv(planar_key(planes, tokens), (rows, groups), tokens, x.device)
    each, shares = share_groups(groups, launch.shares, launch.groups)
    partial = make_room(x, shares, rows)
    planar_gemv[(-(-rows // launch.rows), shares)](
        partial,
        x.contiguous(),
        *planes_in_order(planes),
        rows,
        groups,
        each,
        tokens,
        ONE,
        **compiled_for(planes),
        block_tokens=power_of_two(tokens),
        **launch.options(groups),
        **chain_options(),
    )
    return add_up(partial, x.dtype)


def multiply_planar_tiles(
    x: torch.Tensor, planes: Planes, launch: GemmLaunch | None = None
) -> torch.Tensor:
    """Return x times the transpose for some tokens, on the matrix units: (tokens, rows).

    Weights are rounded to x's dtype before they are multiplied.
    """
    tokens, (rows, groups, _) = len(x), planes.low.shape
    assert x.shape[1] == planes.shape[1]
    if launch is None:
        launch = _found_gemm(planar_key(planes, tokens), (rows, groups), tokens, x.device)
    each, shares = share_groups(groups, launch.shares, launch.groups)
    partial = make_room(x, shares, rows)
    planar_gemm[(-(-rows // launch.rows), -(-tokens // launch.tokens), shares)](
        partial,
        x.contiguous(),
        *planes_in_order(planes),
        rows,
        groups,
        each,
        tokens,
        ONE,
        **compiled_for(planes),
        block_rows=launch.rows,
        block_groups=launch.groups,
        block_tokens=launch.tokens,
        precision="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=launch.warps,
        enable_fp_fusion=True,
    )
    return add_up(partial, x.dtype)


def multiply_dense(
    x: torch.Tensor, weights: torch.Tensor, launch: GemvLaunch | None = None
) -> torch.Tensor:
    """Return one token's x times the transpose: (1, rows). Of more, cuBLAS takes no longer.

    Rows may be apart, but the columns of each are neighbours, and 16 bytes divide a row.
    """
    rows, columns = weights.shape
    width = _LOAD_BYTES // weights.element_size()
    assert x.shape == (1, columns)
    assert fits_dense(weights)
    groups = columns // width
    if launch is None:
        launch = _found_dense(dense_key(weights), (rows, groups), x.device)
    each, shares = share_groups(groups, launch.shares, launch.groups)
    partial = make_room(x, shares, rows)
    dense_gemv[(-(-rows // launch.rows), shares)](
        partial,
        x.contiguous(),
        weights,
        rows,
        groups,
        each,
        weights.stride(0),
        width=width,
        **launch.options(groups),
        **chain_options(),
    )
    return add_up(partial, x.dtype)


def fits_dense(weights: torch.Tensor) -> bool:
    """Return whether rows are whole loads of 16 bytes, so that multiply_dense can read them."""
    width = _LOAD_BYTES // weights.element_size()
    return weights.stride(1) == 1 and weights.shape[1] % width == 0


def dequantize(planes: Planes, dtype: torch.dtype, ids: torch.Tensor | None = None) -> torch.Tensor:
    """Return the numbers, of all rows or of some: in float32, in every bit `layout.numbers`."""
    rows, groups = planes.low.shape[0] if ids is None else len(ids), planes.low.shape[1]
    out = torch.empty((rows, planes.shape[1]), dtype=dtype, device=planes.low.device)
    block_rows, block_groups = (4, 64) if ids is None else (1, 32)
    if rows:
        dequantize_planes[(-(-rows // block_rows), -(-groups // block_groups))](
            out,
            *planes_in_order(planes),
            ids,
            rows,
            groups,
            ONE,
            **compiled_for(planes),
            block_rows=block_rows,
            block_groups=block_groups,
            num_warps=4,
            enable_fp_fusion=False,
            **chain_options(),
        )
    return out


def planar_key(planes: Planes, tokens: int) -> str:
    """Return what a launch for planes is remembered by; as many tokens as fit share one."""
    tiled = "tiles" if tokens > MOST_GEMV_TOKENS else "gemv"
    return f"{tiled} {format_key(planes)} {power_of_two(tokens)}"


def format_key(planes: Planes) -> str:
    """Return what tells planes of one format and shape from others."""
    form, (rows, columns) = planes.format, planes.shape
    return f"{form.bits} {form.zero} {form.scale_columns} {len(planes.tensors)} {rows}x{columns}"


def dense_key(weights: torch.Tensor) -> str:
    """Return what a launch for floats is remembered by."""
    rows, columns = weights.shape
    return f"dense {weights.element_size()} {rows}x{columns}"


def planes_in_order(planes: Planes) -> tuple[torch.Tensor | None, ...]:
    """Return the planes in the order of every kernel's arguments."""
    scales = (planes.scales, planes.offsets, planes.steps, planes.floors)
    return (planes.low, planes.high, *scales)


def compiled_for(planes: Planes) -> dict[str, Any]:
    """Return what every kernel is compiled for."""
    form = planes.format
    span = form.scale_columns // form.group
    return {"bits": form.bits, "zero": form.zero, "span": span, "halves": form.halves}


@cache
def _found_gemv(key: str, shape: tuple[int, int], tokens: int, device: torch.device) -> GemvLaunch:
    rows, groups = shape
    guess = guess_gemv(rows, groups, tokens=tokens, processors=processors_of(device))
    return book_of(device).find(GemvLaunch, key) or guess


@cache
def _found_dense(key: str, shape: tuple[int, int], device: torch.device) -> GemvLaunch:
    rows, groups = shape
    guess = guess_dense(rows, groups, processors=processors_of(device))
    return book_of(device).find(GemvLaunch, key) or guess


@cache
def _found_gemm(key: str, shape: tuple[int, int], tokens: int, device: torch.device) -> GemmLaunch:
    rows, groups = shape
    guess = guess_gemm(rows, groups, tokens=tokens, processors=processors_of(device))
    return book_of(device).find(GemmLaunch, key) or guess
