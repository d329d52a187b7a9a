"""Columns of x in fixed point, as `planar_fixed` reads them: who makes x writes them beside it.

A group is 32 integers of fifteen bits under a scale of its own, and sixteen groups of columns as
the matrix units have them are bytes, so each integer is 256 * high + low. Its record is eight words
of high parts, eight of low ones, and its facts: what a sum of products begins from, the scale, and
the sum of the group as it was rounded. Word 2 * m + b of eight has columns 8 * t + 4 * b + m, t
from the lowest byte on.
"""

import triton
import triton.language as tl

from sllm.runtime.kernels.device.chain_links import follow

RECORD = tl.constexpr(20)  # Words; the last is not used.
MIDDLE = tl.constexpr(12582912.0)  # 1.5 * 2 ** 23: adding an integer to its bits adds to it.
_MIDDLE_BITS = tl.constexpr(0x4B400000)
_LARGEST = tl.constexpr(16383.0)
_FINITE = tl.constexpr(0x7F7FFFFF)  # The bits of the largest float.
_SMALLEST = tl.constexpr(1e-30)  # Of what a scale is for; finer numbers are rounded to it.


@triton.jit
def fix_columns(records, x, groups, room, block: tl.constexpr, chained: tl.constexpr):
    """Write records of x, (tokens, groups, 32): (tokens, room, RECORD), zeros after the last."""
    follow(chained)
    token = tl.program_id(1)
    first = tl.program_id(0) * block
    column = first * 32 + tl.arange(0, 32 * block)
    given = x + token.to(tl.int64) * groups * 32 + column
    write_fixed(
        records, tl.load(given, mask=column < groups * 32, other=0.0), token, first, room, block
    )


@triton.jit
def write_fixed(records, values, token, first, room, block: tl.constexpr):
    """Write the records of a block of groups of a token, from the group `first` on."""
    # Eight neighbours are one byte of eight words, so who loads sixteen bytes has whole bytes.
    parts = tl.reshape(values.to(tl.float32), (block, 4, 8))
    # Bits without a sign are in the order of their numbers, and no number is above all of those.
    size = tl.max(tl.max(parts.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=2), axis=1)
    bounded = tl.maximum(tl.minimum(size, _FINITE).to(tl.float32, bitcast=True), _SMALLEST)
    steps = 1.0 / bounded * _LARGEST
    rounded = (parts * steps[:, None, None] + MIDDLE).to(tl.int32, bitcast=True) - _MIDDLE_BITS
    total = tl.sum(tl.sum(rounded, axis=2), axis=1)
    scale = tl.where(size <= _FINITE, bounded * (1.0 / _LARGEST), float("nan"))
    lowest = 8 * tl.arange(0, 4)[None, :, None]
    high = tl.xor_sum((rounded + 128 >> 8 & 0xFF) << lowest, axis=1)
    low = tl.xor_sum((rounded & 0xFF) << lowest, axis=1)
    group, place = first + tl.arange(0, block), tl.arange(0, 8)
    inside = group < room
    record = records + (token * room + group).to(tl.int64) * RECORD
    word = record[:, None] + (place % 4 * 2 + place // 4)[None, :]
    tl.store(word, high, mask=inside[:, None])
    tl.store(word + 8, low, mask=inside[:, None])
    tl.store(record + 16, total * -8 + _MIDDLE_BITS, mask=inside)
    tl.store(record + 17, scale.to(tl.int32, bitcast=True), mask=inside)
    plain = (scale * total.to(tl.float32)).to(tl.int32, bitcast=True)
    tl.store(record + 18, plain, mask=inside)
