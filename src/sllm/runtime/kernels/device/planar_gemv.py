"""A few tokens times a matrix in planes: bound by reading the planes once.

A program has some rows and a share of the groups, a thread one group of each of the rows at a
time, so that what it prepared of x serves them all. Sums are float32, taken in an order that
depends on the shape and the launch alone.
"""

import triton
import triton.language as tl

from sllm.runtime.kernels.device.chain_links import follow
from sllm.runtime.kernels.device.numerals import one_plus, reach_of


@triton.jit
def planar_gemv(
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
    even: tl.constexpr,
    stages: tl.constexpr,
    chained: tl.constexpr,
):
    """Write the sums over groups_each groups from axis 1 on: out (shares, tokens, rows).

    Tensors have the dimensions (rows, tokens, groups, words) from their addresses on: what is
    loaded with a dimension missing would be moved between threads when it is added.
    """
    follow(chained)
    share = tl.program_id(1)
    first = tl.program_id(0) * block_rows
    stop = tl.minimum((share + 1) * groups_each, groups)
    found = sum_rows(
        x, low, high, scales, offsets, steps, floors, first, rows, groups,
        share * groups_each, stop, tokens, one, bits, zero, span, halves,
        block_rows, block_groups, block_tokens, even, stages,
    )  # fmt: skip
    at_row = first + tl.arange(0, block_rows)[:, None]
    at_token = tl.arange(0, block_tokens)[None, :]
    place = (share * tokens + at_token) * rows + at_row
    kept = (at_row < rows) & (at_token < tokens)
    tl.store(out + place, found.to(out.dtype.element_ty), mask=kept)


@triton.jit
def sum_rows(
    x, low, high, scales, offsets, steps, floors, first_row, rows, groups, start, stop, tokens, one,
    bits: tl.constexpr, zero: tl.constexpr, span: tl.constexpr, halves: tl.constexpr,
    block_rows: tl.constexpr, block_groups: tl.constexpr, block_tokens: tl.constexpr,
    even: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """Return the sums of some rows over the groups from start to stop: (rows, tokens)."""
    row = first_row + tl.arange(0, block_rows)
    row = tl.minimum(row, rows - 1).to(tl.int64)[:, None, None, None]
    token = tl.arange(0, block_tokens)[None, :, None, None]
    total = tl.zeros((block_rows, block_tokens, block_groups, 1), tl.float32)
    for first in tl.range(start, stop, block_groups, num_stages=stages):
        group = (first + tl.arange(0, block_groups))[None, None, :, None]
        total += _block(
            x, low, high, scales, offsets, steps, floors, row, group, token,
            groups, stop, tokens, one, bits, zero, span, halves, even,
        )  # fmt: skip
    return tl.sum(tl.sum(total, axis=3), axis=2)


@triton.jit
def _block(
    x, low, high, scales, offsets, steps, floors, row, group, token,
    groups, stop, tokens, one,
    bits: tl.constexpr, zero: tl.constexpr, span: tl.constexpr, halves: tl.constexpr,
    even: tl.constexpr,
):  # fmt: skip
    """Return what each group adds to each sum: (rows, tokens, groups, 1)."""
    parts: tl.constexpr = 4 if bits == 8 else 8
    word = tl.arange(0, 4)[None, None, None, :]
    inside = (group < stop) | even
    place = (row * groups + group) * 4 + word
    words = tl.load(low + place, mask=inside, other=0)
    more = words
    if bits == 5 or bits == 6:
        more = tl.load(high + place, mask=inside, other=0).to(tl.int32)
    column = (token * groups + group) * 4 * parts + word
    seen = inside & ((token < tokens) | (token.shape[1] == 1))
    wide = row * (groups // span) + group // span
    scale = tl.load(scales + wide, mask=inside, other=0.0).to(tl.float32)
    found = tl.zeros((1, 1, 1, 1), tl.float32)
    for half in tl.static_range(halves):
        sums = tl.zeros((1, 1, 1, 1), tl.float32)
        extra = tl.zeros((1, 1, 1, 1), tl.float32)
        plain = tl.zeros((1, 1, 1, 1), tl.float32)
        for index in tl.static_range(parts // halves):
            part = half * (parts // halves) + index
            some = tl.load(x + column + part * 4, mask=seen, other=0.0).to(tl.float32)
            scaled = some * reach_of(part, bits)
            sums = sums + one_plus(words, more, one, part, bits) * scaled
            extra = extra + scaled
            plain = plain + some
        taken = tl.sum(extra + zero * plain, axis=3, keep_dims=True)
        factor = scale
        if steps is not None:
            at = (row * groups + group) * halves + half
            factor = scale * tl.load(steps + at, mask=inside, other=0).to(tl.float32)
        found = found + (tl.sum(sums, axis=3, keep_dims=True) - taken) * factor
        if offsets is not None:
            offset = tl.load(offsets + wide, mask=inside, other=0.0).to(tl.float32)
            if floors is not None:
                floor = tl.load(floors + row * groups + group, mask=inside, other=0)
                offset = offset * floor.to(tl.float32)
            found = found + offset * tl.sum(plain, axis=3, keep_dims=True)
    return found
