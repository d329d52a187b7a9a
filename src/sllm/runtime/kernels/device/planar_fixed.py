"""One or two tokens in fixed point times a matrix of nibbles, on the integer matrix units.

A group of x is integers of fifteen bits under a scale of its own: sixteen groups of columns as the
unit has them are bytes, so each integer is 256 * high + low, and two columns of the unit. Lane
4 * g + q of a warp has a group of row g and one of row g + 8 as they are stored, four groups beside
each other in a row, and the columns of the unit are the high and low parts of those four, with
zeros where another group's lanes multiply. So each lane is left with the sums of its own group,
exact in 32 bits, and multiplies them by its own scale.

What is taken from each nibble is taken from the sum before it begins: x's own sum, times eight. It
begins at the bits of a float, to which adding a small integer adds just that number, so that no
sum is ever converted. |x| <= 16383 and nibbles from -8 to 7 keep 32 of them within those bits.

In a chain, a program asks for its first weights before it waits for x: no kernel writes weights.
"""

import triton
import triton.language as tl

from sllm.runtime.kernels.device.chain_links import follow
from sllm.runtime.kernels.device.fixed_columns import MIDDLE, RECORD
from sllm.runtime.kernels.device.fragments import WORDS_LOADED

_LOW = tl.constexpr(0x0F0F0F0F)


def _unit() -> str:
    """Return text that multiplies: operands 4 to 19 are numbers, 20 to 27 x, 28 its beginning."""
    unit = "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {$0, $1, $2, $3}"
    lines = [".reg .b32 z", "mov.b32 z, 0"]
    for word in range(4):
        numbers = ", ".join(f"${4 + 4 * word + place}" for place in range(4))
        added = "$0, $1, $2, $3" if word else "z, $28, z, $28"
        columns = f"${20 + 2 * word}, ${21 + 2 * word}"
        lines.append(f"{unit}, {{{numbers}}}, {{{columns}}}, {{{added}}}")
    return "{\n" + ";\n".join(lines) + ";\n}"


_MULTIPLY = tl.constexpr(_unit())
_MULTIPLIED = tl.constexpr(",".join(["=&r"] * 4 + ["r"] * 25))
_LOAD_WEIGHTS = tl.constexpr("ld.global.nc.L1::no_allocate.v4.b32 {$0, $1, $2, $3}, [$4];")
_LOAD_HALF = tl.constexpr("ld.global.nc.u16 $0, [$1];")
_LOAD_BYTE = tl.constexpr("ld.global.nc.u8 $0, [$1];")
_LOAD_COLUMNS = tl.constexpr(
    "{\n.reg .pred p;\n"
    + "".join(f"mov.b32 ${place}, 0;\n" for place in range(8))
    + "setp.ne.s32 p, $9, 0;\n"
    "@p ld.global.v4.b32 {$0, $1, $2, $3}, [$8];\n"
    "@p ld.global.v4.b32 {$4, $5, $6, $7}, [$8+16];\n}"
)
_COLUMNS_LOADED = tl.constexpr(",".join(["=&r"] * 8 + ["l", "r"]))


@triton.jit
def planar_fixed(
    out, records, low, scales, offsets, steps, floors, rows, groups, room, passes,
    zero: tl.constexpr, span: tl.constexpr, tokens: tl.constexpr, tiles: tl.constexpr,
    unroll: tl.constexpr, warps: tl.constexpr, even: tl.constexpr, chained: tl.constexpr,
):  # fmt: skip
    """Write the sums over a share of the groups, axis 1: out (shares, tokens, rows).

    A warp has passes * unroll steps of four groups, one after another in a row; those of its next
    pass are asked for as soon as the last ones are multiplied. tiles: of sixteen rows, of a warp.
    even: whether all steps are within the row.
    """
    lane = tl.arange(0, 32 * warps)
    g, q = lane % 32 // 4, lane % 4
    first_row = tl.program_id(0) * (16 * tiles)
    own = ()
    for line in tl.static_range(2 * tiles):
        own = own + (tl.minimum(first_row + g + 8 * line, rows - 1).to(tl.int64),)  # noqa: RUF005
    group = ((tl.program_id(1) * warps + lane // 32) * (passes * unroll * 4) + q).to(tl.int64)
    held = ()
    for step in tl.static_range(unroll):
        held = held + _fetch(
            low, scales, offsets, steps, floors, own, group + 4 * step, groups, span, even
        )
    follow(chained)
    totals = ()
    for _ in tl.static_range(2 * tiles * tokens):
        totals = totals + (tl.zeros((32 * warps,), tl.float32),)  # noqa: RUF005
    for _ in tl.range(1, passes, num_stages=1):
        fetched = ()
        count: tl.constexpr = len(held) // unroll
        for step in tl.static_range(unroll):
            there = held[step * count : (step + 1) * count]
            totals = _add(
                totals, records, there, g, q, group + 4 * step, room, zero, scales.dtype.element_ty,
                tokens, tiles,
                offsets is not None, steps is not None,
            )  # fmt: skip
            fetched = fetched + _fetch(
                low, scales, offsets, steps, floors, own, group + 4 * (step + unroll), groups,
                span, even,
            )  # fmt: skip
        held = fetched
        group += 4 * unroll
    each: tl.constexpr = len(held) // unroll
    for step in tl.static_range(unroll):
        there = held[step * each : (step + 1) * each]
        totals = _add(
            totals, records, there, g, q, group + 4 * step, room, zero, scales.dtype.element_ty,
            tokens, tiles,
            offsets is not None, steps is not None,
        )  # fmt: skip
    for token in tl.static_range(tokens):
        for tile in tl.static_range(tiles):
            _put(out, totals, token, tile, first_row, rows, tokens, tiles, warps)


@triton.jit
def _fetch(
    low, scales, offsets, steps, floors, own, group, groups, span: tl.constexpr, even: tl.constexpr
):
    """Return a group's words of each row, and then what says its factors, plane by plane."""
    if not even:
        group = tl.minimum(group, groups - 1)
    found = ()
    for line in tl.static_range(len(own)):
        at = low + (own[line] * groups + group) * 4
        found = found + tl.inline_asm_elementwise(
            _LOAD_WEIGHTS,
            WORDS_LOADED,
            [at.to(tl.int64, bitcast=True)],
            (tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=False,
            pack=1,
        )
    for line in tl.static_range(len(own)):
        wide = own[line] * (groups // span) + group // span
        found = found + (_fetch_one(scales + wide, _LOAD_HALF),)  # noqa: RUF005 - Triton's tuples
        if offsets is not None:
            found = found + (_fetch_one(offsets + wide, _LOAD_HALF),)  # noqa: RUF005
        if steps is not None:
            narrow = own[line] * groups + group
            found = found + (  # noqa: RUF005
                _fetch_one(steps + narrow, _LOAD_BYTE),
                _fetch_one(floors + narrow, _LOAD_BYTE),
            )
    return found


@triton.jit
def _fetch_one(at, loading: tl.constexpr):
    """Return an element as the low bits of a word: two in one word would wait for each other."""
    return tl.inline_asm_elementwise(
        loading, "=r,l", [at.to(tl.int64, bitcast=True)], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _add(
    totals, records, there, g, q, group, room, zero: tl.constexpr, scaled: tl.constexpr,
    tokens: tl.constexpr, tiles: tl.constexpr, shifted: tl.constexpr, stepped: tl.constexpr,
):  # fmt: skip
    """Return the totals and what a step adds to them: of each token, of each row."""
    found = ()
    for token in tl.static_range(tokens):
        record = records + (token * room + group) * RECORD
        columns = tl.inline_asm_elementwise(
            _LOAD_COLUMNS,
            _COLUMNS_LOADED,
            [(record + g % 2 * 8).to(tl.int64, bitcast=True), (g // 2 == q).to(tl.int32)],
            (tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=False,
            pack=1,
        )
        # Lanes are what the units' text says only while no tensor is laid out anew; Triton does not
        # lay out what is loaded for every thread, and so nothing that is computed with it.
        facts = tl.load((record + 16).to(tl.pointer_type(tl.int64)))
        begun, size = facts.to(tl.int32), (facts >> 32).to(tl.int32).to(tl.float32, bitcast=True)
        plain = size
        if shifted or zero != 8:
            plain = tl.load(record + 18).to(tl.float32, bitcast=True)
        for tile in tl.static_range(tiles):
            both = _multiply(there, tile, columns, begun)
            for below in tl.static_range(2):
                total = totals[2 * (tiles * token + tile) + below]
                scale, offset = _factors(
                    there, 2 * tile + below, 2 * tiles, zero, scaled, shifted, stepped
                )
                total += both[below] * (scale * size)
                if shifted or zero != 8:
                    total += offset * plain
                found = found + (total,)  # noqa: RUF005 - Triton's tuples
    return found


@triton.jit
def _multiply(there, tile: tl.constexpr, columns, begun):
    """Return the sums of a group of two rows, eight below: nibbles less eight, times x."""
    numbers = ()
    for word in tl.static_range(4):
        above, below = there[8 * tile + word], there[8 * tile + 4 + word]
        numbers = numbers + (above & _LOW, below & _LOW, above >> 4 & _LOW, below >> 4 & _LOW)  # noqa: RUF005
    a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15 = numbers
    b0, b1, b2, b3, b4, b5, b6, b7 = columns
    c0, c1, c2, c3 = tl.inline_asm_elementwise(
        _MULTIPLY,
        _MULTIPLIED,
        [a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15,
         b0, b1, b2, b3, b4, b5, b6, b7, begun],
        (tl.int32, tl.int32, tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )  # fmt: skip
    above = (c0 * 256 + c1).to(tl.float32, bitcast=True) - MIDDLE
    below = (c2 * 256 + c3).to(tl.float32, bitcast=True) - MIDDLE
    return above, below


@triton.jit
def _factors(
    there, line: tl.constexpr, lines: tl.constexpr, zero: tl.constexpr, scaled: tl.constexpr,
    shifted: tl.constexpr, stepped: tl.constexpr,
):  # fmt: skip
    """Return what a sum is multiplied by, and what x's own is, where eight is not zero."""
    planes: tl.constexpr = (len(there) - 4 * lines) // lines
    first: tl.constexpr = 4 * lines + planes * line
    scale = there[first].to(tl.int16).to(scaled, bitcast=True).to(tl.float32)
    if stepped:
        scale = scale * there[first + planes - 2].to(tl.float32)
    offset = scale * (8.0 - zero)
    if shifted:
        more = there[first + 1].to(tl.int16).to(scaled, bitcast=True).to(tl.float32)
        if stepped:
            more = more * there[first + planes - 1].to(tl.float32)
        offset += more
    return scale, offset


@triton.jit
def _put(
    out, totals, token: tl.constexpr, tile: tl.constexpr, first_row, rows, tokens: tl.constexpr,
    tiles: tl.constexpr, warps: tl.constexpr,
):  # fmt: skip
    """Write a tile's sums, over the four lanes of a row and all warps."""
    at: tl.constexpr = 2 * (tiles * token + tile)
    both = tl.reshape(tl.join(totals[at], totals[at + 1]), (warps, 8, 4, 2))
    found = tl.sum(tl.reshape(tl.trans(both, 3, 1, 0, 2), (16, 4 * warps)), axis=1)
    row = first_row + 16 * tile + tl.arange(0, 16)
    place = (tl.program_id(1) * tokens + token) * rows + row
    tl.store(out + place, found.to(out.dtype.element_ty), mask=row < rows)
