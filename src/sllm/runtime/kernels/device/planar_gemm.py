"""Some tokens times a matrix in planes, on the matrix units: numbers are made tile by tile.

Part k of a tile's words meets the columns of x that it is for, so no weight changes its place:
a tile is `parts` products, each as deep as the tile has words.
"""

import triton
import triton.language as tl

from sllm.runtime.kernels.device.numerals import one_plus, reach_of
from sllm.runtime.kernels.device.planar_numbers import load_scale, load_words


@triton.jit
def planar_gemm(
    out,
    x,
    low,
    high,
    scales,
    offsets,
    steps,
    floors,
    rows,
    groups,
    groups_each,
    tokens,
    one,
    bits: tl.constexpr,
    zero: tl.constexpr,
    span: tl.constexpr,
    halves: tl.constexpr,
    block_rows: tl.constexpr,
    block_groups: tl.constexpr,
    block_tokens: tl.constexpr,
    precision: tl.constexpr,
):
    """Write the sums over groups_each groups from axis 2 on: out (shares, tokens, rows)."""
    parts: tl.constexpr = 4 if bits == 8 else 8
    share = tl.program_id(2)
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    token = tl.program_id(1) * block_tokens + tl.arange(0, block_tokens)
    at_row = tl.minimum(row, rows - 1).to(tl.int64)[:, None]
    word = tl.arange(0, block_groups * 4)
    total = tl.zeros((block_tokens, block_rows), tl.float32)
    stop = tl.minimum((share + 1) * groups_each, groups)
    for first in range(share * groups_each, stop, block_groups):
        group = first + word // 4
        inside = (group < stop)[None, :]
        place = at_row * groups * 4 + (first * 4 + word)[None, :]
        words, more = load_words(low, high, place, inside, bits)
        if offsets is not None:
            offset = load_scale(
                offsets, floors, at_row, group[None, :], inside, groups, 0, span, halves
            )
        column = token[:, None] * groups * 4 * parts + (group * 4 * parts + word % 4)[None, :]
        seen = inside & (token < tokens)[:, None]
        for half in tl.static_range(halves):
            scale = load_scale(
                scales, steps, at_row, group[None, :], inside, groups, half, span, halves
            )
            for index in tl.static_range(parts // halves):
                part = half * (parts // halves) + index
                some = tl.load(x + column + part * 4, mask=seen, other=0.0)
                factor = scale * reach_of(part, bits)
                base = -(factor + scale * zero)
                if offsets is not None:
                    base += offset
                found = one_plus(words, more, one, part, bits) * factor + base
                found = tl.trans(found.to(x.dtype.element_ty))
                total = tl.dot(some, found, total, input_precision=precision)
    place = (share * tokens + token[:, None]) * rows + row[None, :]
    kept = (token < tokens)[:, None] & (row < rows)[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=kept)
