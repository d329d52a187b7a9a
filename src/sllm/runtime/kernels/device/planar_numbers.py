"""What a tile of a matrix in planes has, and its numbers in the order of its columns."""

import triton
import triton.language as tl

from sllm.runtime.kernels.device.chain_links import follow
from sllm.runtime.kernels.device.numerals import one_plus, reach_of


@triton.jit
def load_words(low, high, place, inside, bits: tl.constexpr):
    """Return words, and what is above their nibbles as integers of the same shape."""
    words = tl.load(low + place, mask=inside, other=0)
    more = words
    if bits == 5 or bits == 6:
        more = tl.load(high + place, mask=inside, other=0).to(tl.int32)
    return words, more


@triton.jit
def load_scale(scales, steps, row, group, inside, groups, half: tl.constexpr,
               span: tl.constexpr, halves: tl.constexpr):  # fmt: skip
    """Return what each weight of some groups is multiplied by, in a half of their parts."""
    scale = tl.load(scales + row * (groups // span) + group // span, mask=inside, other=0.0)
    scale = scale.to(tl.float32)
    if steps is not None:
        step = tl.load(steps + (row * groups + group) * halves + half, mask=inside, other=0)
        scale = scale * step.to(tl.float32)
    return scale


@triton.jit(do_not_specialize=["rows"])
def dequantize_planes(
    out,
    low,
    high,
    scales,
    offsets,
    steps,
    floors,
    ids,
    rows,
    groups,
    one,
    bits: tl.constexpr,
    zero: tl.constexpr,
    span: tl.constexpr,
    halves: tl.constexpr,
    block_rows: tl.constexpr,
    block_groups: tl.constexpr,
    chained: tl.constexpr,
):
    """Write the numbers of some rows and groups: out (rows, columns).

    ids: which rows of the matrix they are, if they are not the first ones.
    """
    parts: tl.constexpr = 4 if bits == 8 else 8
    at_row = (tl.program_id(0) * block_rows + tl.arange(0, block_rows)).to(tl.int64)
    follow(chained)
    row = at_row
    if ids is not None:
        row = tl.load(ids + at_row, mask=at_row < rows, other=0).to(tl.int64)
    row, at_row = row[:, None, None], at_row[:, None, None]
    group = (tl.program_id(1) * block_groups + tl.arange(0, block_groups))[None, :, None]
    word = tl.arange(0, 4)[None, None, :]
    inside = (at_row < rows) & (group < groups)
    place = (row * groups + group) * 4 + word
    words, more = load_words(low, high, place, inside, bits)
    if offsets is not None:
        offset = load_scale(offsets, floors, row, group, inside, groups, 0, span, halves)
    for half in tl.static_range(halves):
        scale = load_scale(scales, steps, row, group, inside, groups, half, span, halves)
        for index in tl.static_range(parts // halves):
            part = half * (parts // halves) + index
            reach = reach_of(part, bits)
            found = (one_plus(words, more, one, part, bits) * reach - (reach + zero)) * scale
            if offsets is not None:
                found += offset
            column = (at_row * groups + group) * 4 * parts + part * 4 + word
            tl.store(out + column, found.to(out.dtype.element_ty), mask=inside)
