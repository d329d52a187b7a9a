"""Some tokens of 16 bits times a matrix of nibbles: tokens are the columns of the matrix units.

A warp has a few tiles of sixteen rows, and four groups at a time. Lane 4 * g + q has word q of each
of them, of rows g and g + 8; its numbers are made once, for all tokens. A group has sums of its
own, which are scaled in float32. So products are exact there, and the order of sums depends on the
shape and the launch alone. Warps of a program have other rows, which share x in the cache, or other
groups.
"""

import triton
import triton.language as tl

from sllm.runtime.kernels.device.chain_links import follow
from sllm.runtime.kernels.device.fragments import (
    BASE_BFLOAT16,
    BASE_FLOAT16,
    COLUMNS_BFLOAT16,
    COLUMNS_FLOAT16,
    COLUMNS_OPERANDS,
    FLOATS_LOADED,
    LOAD_FOUR,
    NUMBERS_BFLOAT16,
    NUMBERS_FLOAT16,
    NUMBERS_OPERANDS,
    WORDS_LOADED,
)


@triton.jit
def arrange_tokens(
    fragments, sums, x, groups, tokens, block: tl.constexpr, chained: tl.constexpr,
):  # fmt: skip
    """Write x as lanes load it, and what it adds up to.

    fragments: (groups, eights of tokens, 32 lanes, 4), 32-bit words of the columns 4 * i + q and
    16 after. sums: (pairs of groups, eights, 4, 2, 2), of two tokens of a group, and of the next.
    """
    follow(chained)
    eight, eights = tl.program_id(1), tl.num_programs(1)
    first = tl.program_id(0) * block
    at = tl.arange(0, 128 * block)
    group, lane, i = first + at // 128, at // 4 % 32, at % 4
    token = eight * 8 + lane // 4
    given = x + (token * groups + group).to(tl.int64) * 32 + 4 * i + lane % 4
    seen = (group < groups) & (token < tokens)
    near = tl.load(given, mask=seen, other=0).to(tl.int16, bitcast=True).to(tl.int32)
    far = tl.load(given + 16, mask=seen, other=0).to(tl.int16, bitcast=True).to(tl.int32)
    place = fragments + (group * eights + eight) * 128 + at % 128
    tl.store(place, near & 0xFFFF | far << 16, mask=group < groups)
    one = tl.arange(0, 8 * block)
    group, token = first + one // 8, eight * 8 + one % 8
    given = x + (token * groups + group).to(tl.int64)[:, None] * 32 + tl.arange(0, 32)[None, :]
    seen = ((group < groups) & (token < tokens))[:, None]
    total = tl.sum(tl.load(given, mask=seen, other=0).to(tl.float32), axis=1)
    place = sums + (group // 2 * eights + eight) * 16 + one % 8 // 2 * 4 + group % 2 * 2 + one % 2
    tl.store(place, total, mask=group < groups)


@triton.jit
def token_columns(
    out, fragments, sums, low, scales, offsets, steps, floors,
    rows, groups, groups_each, tokens,
    zero: tl.constexpr, span: tl.constexpr, scaled: tl.constexpr, half: tl.constexpr,
    eights: tl.constexpr, tiles: tl.constexpr, tall: tl.constexpr, deep: tl.constexpr,
    even: tl.constexpr, chained: tl.constexpr,
):  # fmt: skip
    """Write the sums over groups_each groups from axis 1 on: out (shares, tokens, rows).

    scales, offsets: bits of floats of type `scaled`, as 16-bit words; as 32-bit words where each
    group has its own. steps and floors are 32-bit words. eights: of tokens, to 8. tiles: of a warp.
    tall: warps beside each other in rows, deep: in groups.
    """
    base: tl.constexpr = BASE_FLOAT16 if half else BASE_BFLOAT16
    share, lane = tl.program_id(1), tl.arange(0, 32 * tall * deep)
    warp = lane // 32
    first_row = (tl.program_id(0) * tall + warp % tall) * (16 * tiles) + lane % 32 // 4
    own = ()
    for line in tl.static_range(2 * tiles):
        own = own + (tl.minimum(first_row + 8 * line, rows - 1).to(tl.int64),)  # noqa: RUF005
    start, stop = share * groups_each, tl.minimum((share + 1) * groups_each, groups)
    group = start + warp // tall * 4
    inside = (group < stop) | even
    words = _fetch(low, own, group * 4 + lane % 4, groups * 4, inside, 4, 4)
    held = _fetch_factors(scales, offsets, steps, floors, own, group, groups, inside, span)
    follow(chained)
    nothing = tl.zeros((32 * tall * deep,), tl.float32)
    totals = ()
    for _ in tl.static_range(4 * tiles * eights):
        totals = totals + (nothing,)  # noqa: RUF005 - Triton's tuples
    for _ in tl.range(start, stop, 4 * deep, num_stages=1):
        there, factors = words, held
        near = tl.minimum(group, groups - 4) * eights
        given = fragments + near * 128 + lane % 32 * 4
        begun = sums + near * 8 + lane % 4 * 4
        group += 4 * deep
        inside = group < stop
        words = _fetch(low, own, group * 4 + lane % 4, groups * 4, inside, 4, 4)
        held = _fetch_factors(scales, offsets, steps, floors, own, group, groups, inside, span)
        for two in tl.static_range(2):
            totals = _add_two(
                totals, given, begun, there, factors, two, base + zero, span, scaled, half,
                eights, tiles, offsets is not None, steps is not None,
            )  # fmt: skip
    for tile in tl.static_range(tiles):
        for eight in tl.static_range(eights):
            _put(out, totals, tile, eight, rows, tokens, share, eights, tiles, tall, deep)


@triton.jit
def _fetch(plane, own, place, each_row, inside, count: tl.constexpr, apart: tl.constexpr):
    """Return so many words of each row, one after another."""
    found = ()
    for line in tl.static_range(len(own)):
        at = plane + own[line] * each_row + place
        for j in tl.static_range(count):
            found = found + (tl.load(at + j * apart, mask=inside, other=0),)  # noqa: RUF005
    return found


@triton.jit
def _fetch_factors(scales, offsets, steps, floors, own, group, groups, inside, span: tl.constexpr):
    """Return what says the factors of four groups: plane after plane, of those that are there."""
    reach: tl.constexpr = 2 if span == 1 else span
    count: tl.constexpr = 2 if span < 4 else 1
    found = _fetch(scales, own, group // reach, groups // reach, inside, count, 1)
    if offsets is not None:
        found = found + _fetch(offsets, own, group // reach, groups // reach, inside, count, 1)
    if steps is not None:
        found = found + _fetch(steps, own, group // 4, groups // 4, inside, 1, 1)
        found = found + _fetch(floors, own, group // 4, groups // 4, inside, 1, 1)
    return found


@triton.jit
def _factor(
    factors, plane: tl.constexpr, line: tl.constexpr, j: tl.constexpr, lines: tl.constexpr,
    span: tl.constexpr, scaled: tl.constexpr, stepped: tl.constexpr,
):  # fmt: skip
    """Return group j's scale, plane 0, or its offset, 1, of one row."""
    count: tl.constexpr = 2 if span < 4 else 1
    found = factors[(plane * lines + line) * count + j // 2 * (count - 1)]
    if span == 1:
        found = found >> (j % 2 * 16)
    found = found.to(tl.int16).to(scaled, bitcast=True).to(tl.float32)
    if stepped:
        narrow = factors[(2 * count + plane) * lines + line]
        found = found * (narrow >> (8 * j) & 0xFF).to(tl.float32)
    return found


@triton.jit
def _add_two(
    totals, given, begun, words, factors, two: tl.constexpr, excess: tl.constexpr,
    span: tl.constexpr, scaled: tl.constexpr, half: tl.constexpr, eights: tl.constexpr,
    tiles: tl.constexpr, shifted: tl.constexpr, stepped: tl.constexpr,
):  # fmt: skip
    """Return the totals and what two groups of the four add to them."""
    both_sums = ()
    for eight in tl.static_range(eights):
        at = begun + (two * eights + eight) * 16
        both_sums = both_sums + tl.inline_asm_elementwise(
            LOAD_FOUR,
            FLOATS_LOADED,
            [at.to(tl.int64, bitcast=True)],
            (tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=False,
            pack=1,
        )
    for one in tl.static_range(2):
        totals = _add_group(
            totals, given, both_sums, words, factors, one, 2 * two + one, excess, span, scaled,
            half, eights, tiles, shifted, stepped,
        )  # fmt: skip
    return totals


@triton.jit
def _add_group(
    totals, given, both_sums, words, factors, one: tl.constexpr, j: tl.constexpr,
    excess: tl.constexpr, span: tl.constexpr, scaled: tl.constexpr, half: tl.constexpr,
    eights: tl.constexpr, tiles: tl.constexpr, shifted: tl.constexpr, stepped: tl.constexpr,
):  # fmt: skip
    """Return the totals and what group j adds to them."""
    given_x = ()
    for eight in tl.static_range(eights):
        at = given + (j * eights + eight) * 128
        given_x = given_x + tl.inline_asm_elementwise(
            LOAD_FOUR,
            WORDS_LOADED,
            [at.to(tl.int64, bitcast=True)],
            (tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=False,
            pack=1,
        )
    found = ()
    for tile in tl.static_range(tiles):
        found = found + _add_tile(
            totals, given_x, both_sums, words, factors, tile, one, j, excess, span, scaled, half,
            eights, 2 * tiles, shifted, stepped,
        )  # fmt: skip
    return found


@triton.jit
def _add_tile(
    totals, given_x, both_sums, words, factors, tile: tl.constexpr, one: tl.constexpr,
    j: tl.constexpr, excess: tl.constexpr, span: tl.constexpr, scaled: tl.constexpr,
    half: tl.constexpr, eights: tl.constexpr, lines: tl.constexpr, shifted: tl.constexpr,
    stepped: tl.constexpr,
):  # fmt: skip
    """Return the totals of one tile and what group j adds to them."""
    making: tl.constexpr = NUMBERS_FLOAT16 if half else NUMBERS_BFLOAT16
    multiplying: tl.constexpr = COLUMNS_FLOAT16 if half else COLUMNS_BFLOAT16
    line: tl.constexpr = 2 * tile
    a0, a1, a2, a3, a4, a5, a6, a7 = tl.inline_asm_elementwise(
        making,
        NUMBERS_OPERANDS,
        [words[4 * line + j], words[4 * line + 4 + j]],
        (tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )
    scale = _factor(factors, 0, line, j, lines, span, scaled, stepped)
    scale_below = _factor(factors, 0, line + 1, j, lines, span, scaled, stepped)
    # What a number has too much is taken away with the sum of x.
    offset, offset_below = scale * (-1.0 * excess), scale_below * (-1.0 * excess)
    if shifted:
        offset += _factor(factors, 1, line, j, lines, span, scaled, stepped)
        offset_below += _factor(factors, 1, line + 1, j, lines, span, scaled, stepped)
    found = ()
    for eight in tl.static_range(eights):
        near, next_one = both_sums[4 * eight + 2 * one], both_sums[4 * eight + 2 * one + 1]
        x0, x1, x2, x3 = given_x[4 * eight : 4 * eight + 4]
        c0, c1, c2, c3 = tl.inline_asm_elementwise(
            multiplying,
            COLUMNS_OPERANDS,
            [a0, a1, a2, a3, a4, a5, a6, a7, x0, x1, x2, x3],
            (tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
        t0, t1, t2, t3 = totals[4 * (tile * eights + eight) : 4 * (tile * eights + eight) + 4]
        found = found + (  # noqa: RUF005 - Triton's tuples
            t0 + near * offset + c0 * scale,
            t1 + next_one * offset + c1 * scale,
            t2 + near * offset_below + c2 * scale_below,
            t3 + next_one * offset_below + c3 * scale_below,
        )
    return found


@triton.jit
def _put(
    out, totals, tile: tl.constexpr, eight: tl.constexpr, rows, tokens, share,
    eights: tl.constexpr, tiles: tl.constexpr, tall: tl.constexpr, deep: tl.constexpr,
):  # fmt: skip
    """Write a tile's sums for eight tokens, those of all warps of a row added in order."""
    lane = tl.arange(0, 32 * tall)
    first_row = (tl.program_id(0) * tall + lane // 32) * (16 * tiles) + 16 * tile + lane % 32 // 4
    for place in tl.static_range(4):
        own = totals[4 * (tile * eights + eight) + place]
        found = tl.sum(tl.reshape(own, (deep, 32 * tall)), axis=0)
        row, token = first_row + place // 2 * 8, eight * 8 + lane % 4 * 2 + place % 2
        kept = (row < rows) & (token < tokens)
        at = (share * tokens + token) * rows + row
        tl.store(out + at, found.to(out.dtype.element_ty), mask=kept)
