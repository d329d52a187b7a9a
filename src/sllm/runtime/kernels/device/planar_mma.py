"""A token of 16 bits times sixteen rows of nibbles on the matrix units.

A program's warps take four groups each at a time. See `fragments` for what a lane has. Products are
exact in float32, and sums are taken in an order that depends on the shape and the launch alone.
"""

import triton
import triton.language as tl

from sllm.runtime.kernels.device.fragments import (
    BASE_BFLOAT16,
    BASE_FLOAT16,
    STEP_BFLOAT16,
    STEP_FLOAT16,
    STEP_OPERANDS,
    SUMS_BFLOAT16,
    SUMS_FLOAT16,
    SUMS_OPERANDS,
)


@triton.jit
def sum_groups(
    x, low, scales, offsets, steps, floors, own, first_group, groups, start, stop, tokens,
    zero: tl.constexpr, span: tl.constexpr, scaled: tl.constexpr, half: tl.constexpr,
    step: tl.constexpr, even: tl.constexpr, ahead: tl.constexpr,
):  # fmt: skip
    """Return what each lane sums up over its warp's groups, from start to stop.

    x: as 32-bit words. scales, offsets: bits of floats of type `scaled`, as 16-bit words; as 32-bit
    words where each group has its own. steps and floors are 16-bit words. ahead: whether weights
    are in registers a step before they are multiplied, as scales always are.
    """
    group = start + first_group
    inside = (group < stop) | even
    held = _fetch_factors(scales, offsets, steps, floors, own, group, groups, inside, span)
    if ahead:
        words = _fetch_words(low, own, group, groups, inside)
    total = tl.zeros((first_group.shape[0], 4), tl.float32)
    for first in tl.range(start, stop, step, num_stages=1):
        group = first + first_group
        inside = (group < stop) | even
        later = group + step
        if ahead:
            there = words
            words = _fetch_words(low, own, later, groups, later < stop)
        else:
            there = _fetch_words(low, own, group, groups, inside)
        factors = held
        held = _fetch_factors(
            scales, offsets, steps, floors, own, later, groups, later < stop, span
        )
        near = x + (group + own[3]) * 16 + own[4]
        scale = _factor(factors, 0, own[4], span, scaled, steps is not None)
        offset = scale
        if offsets is not None:
            offset = _factor(factors, 2, own[4], span, scaled, floors is not None)
        both = (scale, offset)
        wide: tl.constexpr = offsets is not None
        total = _add(total, near, there, both, own, groups, tokens, inside, zero, half, wide)
    return total


@triton.jit
def _fetch_words(low, own, group, groups, inside):
    """Return a group's words, of two rows."""
    row, below, _, q, word = own
    at = (group + q) * 4 + word
    above_words = tl.load(low + row * groups * 4 + at, mask=inside, other=0)
    below_words = tl.load(low + below * groups * 4 + at, mask=inside, other=0)
    return above_words, below_words


@triton.jit
def _fetch_factors(scales, offsets, steps, floors, own, group, groups, inside, span: tl.constexpr):
    """Return what says the factors of two groups, of two rows; of what is not there, scales.

    Two each: scales, offsets, and then steps and floors.
    """
    row, below, _, q, _ = own
    reach: tl.constexpr = 2 if span == 1 else span
    wide = (group + q % 2 * 2) // reach
    narrow = group // 2 + q % 2
    above_wide, below_wide = row * (groups // reach) + wide, below * (groups // reach) + wide
    above_narrow, below_narrow = row * (groups // 2) + narrow, below * (groups // 2) + narrow
    a = tl.load(scales + above_wide, mask=inside, other=0)
    b = tl.load(scales + below_wide, mask=inside, other=0)
    c, d, e, f, g, h = a, b, a, b, a, b
    if offsets is not None:
        c = tl.load(offsets + above_wide, mask=inside, other=0)
        d = tl.load(offsets + below_wide, mask=inside, other=0)
    if steps is not None:
        e = tl.load(steps + above_narrow, mask=inside, other=0)
        f = tl.load(steps + below_narrow, mask=inside, other=0)
        g = tl.load(floors + above_narrow, mask=inside, other=0)
        h = tl.load(floors + below_narrow, mask=inside, other=0)
    return a, b, c, d, e, f, g, h


@triton.jit
def _factor(
    factors, first: tl.constexpr, word,
    span: tl.constexpr, scaled: tl.constexpr, stepped: tl.constexpr,
):  # fmt: skip
    """Return what a lane's four sums are multiplied by."""
    both = tl.where(word < 2, factors[first], factors[first + 1])
    if span == 1:
        both = both >> (word % 2 * 16)
    found = both.to(tl.int16).to(scaled, bitcast=True).to(tl.float32)
    if stepped:
        both = tl.where(word < 2, factors[first + 4], factors[first + 5]).to(tl.int32)
        found = found * (both >> (word % 2 * 8) & 0xFF).to(tl.float32)
    return found


@triton.jit
def _add(
    total, near, words, factors, own, groups, tokens, inside,
    zero: tl.constexpr, half: tl.constexpr, shifted: tl.constexpr,
):  # fmt: skip
    """Return the total and what a step adds to it, of two tokens."""
    summing: tl.constexpr = SUMS_FLOAT16 if half else SUMS_BFLOAT16
    multiplying: tl.constexpr = STEP_FLOAT16 if half else STEP_BFLOAT16
    base: tl.constexpr = BASE_FLOAT16 if half else BASE_BFLOAT16
    _, _, g, q, _ = own
    token = g // 4
    seen = inside & (g % 4 == q) & (token < tokens)
    given = near + token * groups * 16
    x0 = tl.load(given, mask=seen, other=0)
    x1 = tl.load(given + 4, mask=seen, other=0)
    x2 = tl.load(given + 8, mask=seen, other=0)
    x3 = tl.load(given + 12, mask=seen, other=0)
    plain = tl.inline_asm_elementwise(
        summing, SUMS_OPERANDS, [x0, x1, x2, x3], tl.float32, is_pure=True, pack=4
    )
    found = tl.inline_asm_elementwise(
        multiplying,
        STEP_OPERANDS,
        [words[0], words[1], x0, x1, x2, x3],
        tl.float32,
        is_pure=True,
        pack=4,
    )
    total += (found - plain * (1.0 * (base + zero))) * factors[0]
    if shifted:
        total += plain * factors[1]
    return total
